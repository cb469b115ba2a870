"""Any picture becomes upright RGB in [0, 1], and comes back."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.images import image_files, load_image, open_image, to_bytes, to_pil, to_tensor


@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))))
def test_tensor_and_picture_are_a_round_trip(levels: np.ndarray) -> None:
    tensor = to_tensor(Image.fromarray(levels))
    assert tensor.shape == (3, *levels.shape[:2])
    assert tensor.min() >= 0 and tensor.max() <= 1
    assert np.array_equal(np.asarray(to_pil(tensor)), levels)


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (Image.new("L", (2, 3), 51), (0.2, 0.2, 0.2)),
        (Image.new("1", (2, 3), 1), (1, 1, 1)),
        (Image.new("RGBA", (2, 3), (255, 0, 0, 0)), (1, 1, 1)),
        (Image.new("RGBA", (2, 3), (255, 0, 0, 255)), (1, 0, 0)),
        (Image.new("RGBA", (2, 3), (0, 0, 0, 51)), (0.8, 0.8, 0.8)),
        (Image.new("LA", (2, 3), (0, 0)), (1, 1, 1)),
        (Image.new("CMYK", (2, 3), (0, 0, 0, 0)), (1, 1, 1)),
        (Image.fromarray(np.full((3, 2), 65535, np.uint16)), (1, 1, 1)),
        (Image.fromarray(np.full((3, 2), 200, np.uint16)), (1 / 255, 1 / 255, 1 / 255)),
        (Image.fromarray(np.full((3, 2), 65535, np.int32)), (1, 1, 1)),
        (Image.fromarray(np.full((3, 2), 51, np.int32)), (0.2, 0.2, 0.2)),
        (Image.fromarray(np.full((3, 2), 0.2, np.float32)), (0.2, 0.2, 0.2)),
        (Image.fromarray(np.full((3, 2), np.nan, np.float32)), (0, 0, 0)),
    ],
)
def test_every_mode_becomes_rgb(picture: Image.Image, expected: tuple[float, ...]) -> None:
    tensor = to_tensor(picture)
    assert tensor.shape == (3, 3, 2) and tensor.dtype == torch.float32
    assert torch.allclose(tensor.mean((1, 2)), torch.tensor(expected, dtype=torch.float32), atol=1e-6)


def test_transparent_palette_colour_becomes_white(tmp_path) -> None:
    picture = Image.new("P", (2, 2), 0)
    picture.putpalette([10, 20, 30, 0, 0, 255])
    picture.putpixel((1, 1), 1)
    picture.save(tmp_path / "palette.png", transparency=0)
    tensor = load_image(tmp_path / "palette.png")
    assert tensor[:, 0, 0].tolist() == [1, 1, 1]
    assert tensor[:, 1, 1].tolist() == [0, 0, 1]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation: int) -> None:
    upright = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: np.rot90(upright.transpose(1, 0, 2), 2),
        8: np.rot90(upright, 3),
    }[orientation]
    picture = Image.fromarray(np.ascontiguousarray(stored))
    exif = picture.getexif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(np.asarray(open_image(tmp_path / "turned.png")), upright)


def test_values_outside_the_range_are_clipped_and_nan_is_black() -> None:
    values = torch.tensor([-1.0, float("nan"), 0.5, 2.0, float("inf")])
    assert to_bytes(values).tolist() == [0, 0, 128, 255, 255]


def test_bad_files_get_one_line(tmp_path) -> None:
    whole = tmp_path / "whole.jpg"
    Image.effect_noise((64, 64), 60).convert("RGB").save(whole)
    (tmp_path / "cut.jpg").write_bytes(whole.read_bytes()[:700])
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("cut.jpg", "text.png", "empty.png", "missing.png", "."):
        with pytest.raises(FairAdapterError) as caught:
            load_image(tmp_path / name)
        message = str(caught.value)
        assert str(tmp_path) in message and "expected" in message and "\n" not in message


def test_folder_lists_its_images_in_order(tmp_path) -> None:
    for name in ("b.png", "a.JPG", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "c.png").mkdir()
    assert [p.name for p in image_files(tmp_path)] == ["a.JPG", "b.png"]
    assert image_files(tmp_path / "b.png") == [tmp_path / "b.png"]
    with pytest.raises(FairAdapterError, match="found none in this folder"):
        image_files(tmp_path / "c.png")
    with pytest.raises(FairAdapterError, match="found nothing"):
        image_files(tmp_path / "nowhere")


def test_wrong_tensor_shape_is_an_error() -> None:
    with pytest.raises(FairAdapterError, match=r"expected \(3, H, W\)"):
        to_pil(torch.zeros(2, 3, 4, 4))
