"""Any picture becomes upright RGB in [0, 1], and comes back."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.images import (
    image_files,
    load_image,
    open_image,
    other_files,
    to_bytes,
    to_pil,
    to_rgb,
    to_tensor,
)

TWO_COLOURS = np.zeros((20, 30, 3), dtype=np.uint8)
TWO_COLOURS[:, :10] = (0, 0, 255)


def turned_exif(tag: int = 0x9204, kind: int = 10, over: int = -1) -> bytes:
    """Orientation 6, and an entry `over` / 0 as some cameras write it."""
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHII", tag, kind, 1, 38)
    return b"II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<IiI", 0, over, 0)


def saved(kind: str, **options) -> bytes:
    data = io.BytesIO()
    Image.fromarray(TWO_COLOURS).save(data, kind, **options)
    return data.getvalue()


def chunk(kind: bytes, data: bytes, crc: int | None = None, length: int | None = None) -> bytes:
    crc = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data) if length is None else length) + kind + data + struct.pack(">I", crc)


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


# ---- what real files have wrong with them


@pytest.mark.parametrize("entry", [(0x9204, 10, -1), (0x011A, 5, 72), (0x010F, 5, 72)])
def test_a_picture_is_turned_without_writing_its_exif_anew(tmp_path, entry) -> None:
    jpeg, remark = saved("JPEG", quality=100, subsampling=0), b"Exif\0\0" + turned_exif(*entry)
    phone = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(remark) + 2) + remark + jpeg[2:]
    (tmp_path / "phone.jpg").write_bytes(phone)
    upright = np.rot90(TWO_COLOURS, 3)
    assert np.abs(np.asarray(open_image(tmp_path / "phone.jpg")).astype(int) - upright).max() < 4
    with Image.open(tmp_path / "phone.jpg") as image:  # as a host hands it over
        picture = to_rgb(image)
    assert picture.size == (20, 30)
    picture.save(tmp_path / "copy.png")  # says nothing of an orientation, or viewers would turn it again
    assert open_image(tmp_path / "copy.png").size == (20, 30)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_a_tiff_is_turned_once_whichever_pillow_reads_it(tmp_path, compression: str) -> None:
    (tmp_path / "scan.tif").write_bytes(saved("TIFF", compression=compression, tiffinfo={0x0112: 6}))
    assert np.array_equal(np.asarray(open_image(tmp_path / "scan.tif")), np.rot90(TWO_COLOURS, 3))


@pytest.mark.parametrize(
    "damaged",
    [
        chunk(b"tEXt", b"parameters\0a nurse", crc=1),
        chunk(b"zTXt", b"parameters\0\5unknown compression"),
        chunk(b"zTXt", b"workflow\0\0" + zlib.compress(b"{" * 3_000_000)),
        chunk(b"iTXt", b"prompt\0\1\0\0\0" + zlib.compress(b"{" * 3_000_000)),
        chunk(b"tEXt", b"parameters\0a nurse", length=5000),
        chunk(b"gAMA", b"1"),
    ],
)
def test_a_png_with_a_damaged_remark_is_read(tmp_path, damaged: bytes) -> None:
    png = saved("PNG")
    (tmp_path / "it.png").write_bytes(png[:33] + damaged + png[33:])
    assert np.array_equal(np.asarray(open_image(tmp_path / "it.png")), TWO_COLOURS)
    turned = png[:33] + chunk(b"eXIf", turned_exif()) + damaged + png[33:]
    (tmp_path / "it.png").write_bytes(turned)
    assert np.array_equal(np.asarray(open_image(tmp_path / "it.png")), np.rot90(TWO_COLOURS, 3))
    at = png.index(b"IDAT") + 6  # what is wrong with the pixels stays an error
    (tmp_path / "it.png").write_bytes(png[:33] + damaged + png[33:at] + b"\0\0\0" + png[at + 3 :])
    with pytest.raises(FairAdapterError, match="does not decode"):
        open_image(tmp_path / "it.png")


@pytest.mark.parametrize(
    "raised",
    [
        RuntimeError("Failed to decode frame 0: Decoding of color planes failed"),
        IndexError("list index out of range"),
        AttributeError("'NoneType' object has no attribute 'read'"),
        NotImplementedError("Unknown BLP encoding 7"),
        SyntaxError("not a TIFF file"),
        struct.error("unpack requires a buffer of 4 bytes"),
        zlib.error("Error -3 while decompressing data"),
        ZeroDivisionError("division by zero"),
        KeyError(5),
        TypeError("a bytes-like object is required"),
        AssertionError(),
        MemoryError(),
        Image.DecompressionBombError("too many pixels"),
        Image.DecompressionBombWarning("many pixels"),
    ],
)
def test_whatever_a_decoder_raises_is_one_line_about_the_file(tmp_path, monkeypatch, raised) -> None:
    (tmp_path / "a.webp").write_bytes(b"RIFF")

    def decoder(*_, **__):
        raise raised

    monkeypatch.setattr(Image, "open", decoder)
    with pytest.raises(FairAdapterError, match=r"a\.webp: expected ") as caught:
        open_image(tmp_path / "a.webp")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "DDS", "PPM"])
def test_every_cut_file_is_read_or_refused(tmp_path, kind: str) -> None:
    data = saved(kind)
    for end in range(0, len(data), 7):
        (tmp_path / "cut").write_bytes(data[:end])
        try:
            assert open_image(tmp_path / "cut").mode == "RGB"
        except FairAdapterError as error:
            assert "cut: expected " in str(error)


def test_a_format_that_this_pillow_does_not_read_is_named(tmp_path) -> None:
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    with pytest.raises(FairAdapterError, match="found HEIC; convert it"):
        open_image(tmp_path / "phone.heic")


def test_what_is_no_picture_in_a_folder_is_counted(tmp_path) -> None:
    names = (
        "a.jfif",
        "b.AVIF",
        "c.jpe",
        "d.txt",
        "e.TXT",
        "f.heic",
        "README",
        ".hidden",
        "in/g.png",
        "in/h.csv",
    )
    (tmp_path / "in").mkdir()
    for name in names:
        (tmp_path / name).write_bytes(b"")
    assert [p.name for p in image_files(tmp_path)] == ["a.jfif", "b.AVIF", "c.jpe"]
    assert other_files(tmp_path) == "1 .heic, 2 .txt, 1 without a suffix"
    assert [p.name for p in image_files(tmp_path, below=True)][-1] == "g.png"
    assert other_files(tmp_path, below=True) == "1 .csv, 1 .heic, 2 .txt, 1 without a suffix"
    assert other_files(tmp_path / "a.jfif") == ""


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
