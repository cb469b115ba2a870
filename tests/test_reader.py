"""Pictures in, bars out: one picture as many, odd pictures, threads."""

import threading

import pytest
import torch

from fair_adapter.shared.bars import FaceBars
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.reader import FaceReader
from fair_adapter.tests.fixture_faces import images, rows

reader = FaceReader()


def labels(faces: list[FaceBars]) -> dict[str, str]:
    return {bar.attribute: bar.label for bar in faces[0].bars}


def test_nothing_is_loaded_before_it_is_needed() -> None:
    with pytest.raises(FairAdapterError, match=r"did you mean|use one of them"):
        FaceReader("no such classifier").read(images()[:1])


def test_fixture_faces_are_read_as_their_labels_say() -> None:
    found = reader.read(images())
    assert [a.name for a in reader.attributes] == ["gender", "race", "age"]
    assert all(len(faces) == 1 for faces in found)
    right = [
        labels(f)["gender"] == r["gender"] and labels(f)["race"] == r["race"] for f, r in zip(found, rows())
    ]
    assert sum(right) >= 33


def test_a_batch_gives_what_its_pictures_give() -> None:
    blank = torch.zeros(1, 3, 256, 256)
    batch = torch.cat([images()[:2], blank, images()[2:3]])
    together = reader.examine(batch)
    assert together[2].faces == () and together[2].years == ()
    for picture, reading in zip(batch, together):
        (alone,) = reader.examine(picture[None])
        assert [[b.label for b in f.bars] for f in alone.faces] == [
            [b.label for b in f.bars] for f in reading.faces
        ]
        assert alone.years == pytest.approx(reading.years, abs=0.01)


def test_all_faces_of_a_picture() -> None:
    crowd = torch.cat([torch.cat(tuple(images()[i : i + 2]), 2) for i in (0, 2)], 1)[None]
    everyone = reader.with_options(all_faces=True)
    assert len(everyone.read(crowd)[0]) == 4 and len(reader.read(crowd)[0]) == 1
    assert everyone.read(crowd)[0][0].box == reader.read(crowd)[0][0].box


def test_half_precision_and_bad_numbers_are_read() -> None:
    picture = images()[:1].half()
    assert labels(reader.read(picture)[0]) == labels(reader.read(images()[:1])[0])
    broken = images()[:1].clone()
    broken[:, :, :8] = torch.nan
    broken[:, :, -8:] = torch.inf
    assert all(0 <= bar.confidence <= 1 for bar in reader.read(broken)[0][0].bars)
    assert reader.read(torch.full((2, 3, 1, 1), torch.nan)) == [[], []]
    assert reader.read(torch.zeros(0, 3, 8, 8)) == []


@pytest.mark.parametrize(
    "bad", [torch.zeros(3, 8, 8), torch.zeros(1, 4, 8, 8), torch.zeros(1, 3, 8, 8).int()]
)
def test_no_pictures(bad: torch.Tensor) -> None:
    with pytest.raises(FairAdapterError, match=r"face reading: expected floating point \(N, 3, H, W\)"):
        reader.read(bad)


def test_certainty_is_the_callers() -> None:
    unsure = reader.with_options(certain=1.1)
    assert unsure.classifier is reader.classifier  # loaded once
    assert not any(bar.certain for bar in unsure.read(images()[:1])[0][0].bars)
    assert any(bar.certain for bar in reader.read(images()[:1])[0][0].bars)


def test_threads_and_inference_mode_share_a_reader() -> None:
    shared = FaceReader()
    found: dict[int, list[list[FaceBars]]] = {}

    def work(index: int) -> None:
        with torch.inference_mode():
            found[index] = shared.read(images()[:2])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1] == found[2] == shared.read(images()[:2])
