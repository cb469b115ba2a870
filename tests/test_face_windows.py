"""Rows of many faces and very large pictures: windows that miss nothing and count nothing twice."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from fair_adapter.shared.faces import Face, least_face, windows
from fair_adapter.shared.faces.windows import Sighting, detection_size, is_cut, layers, merged
from fair_adapter.tests.fixture_faces import detector, images

ORDINARY = [(512, 512), (64, 1024), (1000, 3900), (2048, 512), (3000, 4000), (6000, 4000), (4095, 8000)]


def sheet(columns: int, rows: int, side: int) -> torch.Tensor:
    small = F.interpolate(images(), side, mode="bilinear", antialias=True)
    order = [small[i % len(small)] for i in range(columns * rows)]
    return torch.cat([torch.cat(order[r * columns : (r + 1) * columns], 2) for r in range(rows)], 1)[None]


def by_cell(faces: list[Face], columns: int, side: int) -> dict[int, int]:
    """cell -> faces whose middle lies in it."""
    found: dict[int, int] = {}
    for face in faces:
        x, y = ((face.box[i] + face.box[i + 2]) / 2 // side for i in (0, 1))
        found[int(y * columns + x)] = found.get(int(y * columns + x), 0) + 1
    return found


@pytest.mark.parametrize("upright", [False, True])
def test_every_face_of_a_long_row_is_found_once(upright: bool) -> None:
    side, count = 128, 36
    row = sheet(1, count, side) if upright else sheet(count, 1, side)
    assert max(row.shape) == 4608
    faces = detector().detect(row)[0]
    found = by_cell(faces, 1 if upright else count, side)
    assert set(found) == set(range(count)), "missing"
    extra = sum(found.values()) - count
    assert 0 <= extra <= 3  # what the detector takes for a second face beside one
    boxes = [face.box for face in faces]
    assert all(windows._shared(a, b) < 0.5 for i, a in enumerate(boxes) for b in boxes[:i]), "twice"


def test_faces_of_a_very_large_picture_are_found_in_its_tiles(monkeypatch) -> None:
    picture = sheet(16, 16, 48)  # as 8192 x 8192 px of 512 px each, with all limits reduced
    assert len(by_cell(detector().detect(picture)[0], 16, 48)) < 160
    monkeypatch.setattr(windows, "LARGE", 768)
    monkeypatch.setattr(windows, "TILE", 384)
    assert [len(layer.corners) for layer in layers(768, 768)] == [1, 9]
    faces = detector().detect(picture)[0]
    found = by_cell(faces, 16, 48)
    assert len(found) >= 240 and sum(n > 1 for n in found.values()) <= 6
    large = F.interpolate(images()[:1], 800, mode="bilinear")  # one face, larger than the tiles' overlap
    assert [round(v) for v in detector().detect(large)[0][0].box] == [
        round(v) for v in detector()._batched(large)[0][0].box
    ]
    assert len(detector().detect(large)[0]) == len(detector()._batched(large)[0])


@pytest.mark.parametrize("size", ORDINARY)
def test_ordinary_pictures_are_searched_once_as_a_whole(size: tuple[int, int], monkeypatch) -> None:
    assert layers(*size) == [windows.Layer(size, ((0, 0),))]
    asked = []

    def cascade(levels: torch.Tensor, smallest: float) -> tuple[torch.Tensor, ...]:
        asked.append((tuple(levels.shape[2:]), smallest))
        return torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, 5, 2), torch.zeros(0, dtype=torch.long)

    monkeypatch.setattr(detector().cascade, "forward", cascade)
    assert detector().detect(torch.zeros(1, 3, *size)) == [[]]
    shown = detection_size(*size)
    assert asked == [(shown, max(16.0, 0.05 * min(shown)))]


@given(st.integers(1, 9000), st.integers(1, 9000), st.data())
def test_windows_hold_every_face_whole(height: int, width: int, data) -> None:
    """A square of the largest size that a layer is for lies within one of its windows, wherever it is."""
    short = min(height, width)
    for layer in layers(height, width):
        rows, columns = layer.size
        tiles = layer.size == (windows.TILE, windows.TILE) and short >= windows.LARGE
        side = data.draw(st.integers(1, short // 16 if tiles else short))
        y, x = (data.draw(st.integers(0, whole - side)) for whole in (height, width))
        assert any(
            t <= y and left <= x and y + side <= t + rows and x + side <= left + columns
            for t, left in layer.corners
        )
        assert all(t + rows <= height and left + columns <= width for t, left in layer.corners)
        assert min(t for t, _ in layer.corners) == min(left for _, left in layer.corners) == 0


def test_the_least_face_is_said_in_pixels_of_the_picture() -> None:
    assert [least_face(512, 512), least_face(768, 512), least_face(64, 64)] == [26, 26, 8]
    assert least_face(3000, 4000) == 150  # 5% of the shorter side
    assert least_face(512, 16384) == least_face(16384, 512) == 26  # reduced as a whole, it was 256
    assert least_face(8192, 8192) == 103  # as a whole, it was 410
    assert least_face(512, 2048) == 32  # 16 px of the 1024 that the row is reduced to


def sighting(box: tuple[float, float, float, float], window: int, cut: bool = False) -> Sighting:
    return Sighting(box, window, (0, cut, window), cut)


def test_one_face_of_two_windows_stays_once_and_neighbours_stay() -> None:
    whole, half = sighting((90, 10, 130, 60), 2), sighting((92, 12, 112, 58), 1, cut=True)
    again, other = sighting((91, 11, 131, 61), 3), sighting((125, 10, 165, 60), 3)
    assert merged([half, whole, again, other]) == [1, 3]
    inside = [sighting((0, 0, 10, 10), 1), sighting((1, 1, 9, 9), 1)]  # one window has settled that itself
    assert merged(inside) == [0, 1]
    assert is_cut((95, 10, 120, 40), (0, 0), (100, 100), (100, 300))
    assert not is_cut((-5, 10, 40, 40), (0, 0), (100, 100), (100, 300))  # over the picture's own edge
    assert is_cut((201, 10, 240, 40), (0, 200), (100, 100), (100, 300))


def test_the_package_itself_fails_below_its_least_face() -> None:
    from facenet_pytorch import MTCNN

    small = np.zeros((19, 64, 3), dtype=np.uint8)
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        MTCNN(min_face_size=20).detect(small)
    assert detector().detect(torch.zeros(1, 3, 19, 64)) == [[]]
    MTCNN(min_face_size=20).detect(np.zeros((20, 64, 3), dtype=np.uint8))
