"""Live bars: which frames are shown, that the sampler never waits, and that no failure reaches it."""

import json
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fair_adapter.shared.attributes import TargetDistribution
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.live import LiveBars, LiveFrame
from fair_adapter.shared.reader import FaceReader
from fair_adapter.tests.fixture_faces import images

READER = FaceReader()
PATIENCE = 300.0  # seconds: an end for tests that hang, however busy the machine


def pictures(latents: Tensor) -> Tensor:
    """Stands for a decoder: the latents are pictures already."""
    return latents


class Gate:
    """A decoder that waits until it is let through, and keeps what it was given."""

    def __init__(self) -> None:
        self.begun, self.open = threading.Event(), threading.Event()
        self.seen: list[Tensor] = []

    def __call__(self, latents: Tensor) -> Tensor:
        self.seen.append(latents)
        self.begun.set()
        assert self.open.wait(PATIENCE)
        return latents


def run(
    steps: int, decode: Callable[[Tensor], Tensor] = pictures, **options: object
) -> tuple[list[LiveFrame], LiveBars]:
    """All steps of a sampler that waits for each frame."""
    frames: list[LiveFrame] = []
    shown = threading.Event()

    def show(frame: LiveFrame) -> None:
        frames.append(frame)
        shown.set()

    bars = LiveBars(READER, decode, show, **options)  # type: ignore[arg-type]
    for step in range(1, steps + 1):
        shown.clear()
        if bars.offer(step, steps, images()[:2]):
            assert shown.wait(PATIENCE)
    bars.close(PATIENCE)
    return frames, bars


def test_every_third_step_and_the_last() -> None:
    frames, bars = run(10, every=3, reliable_from=0.4)
    assert [f.step for f in frames] == [3, 6, 9, 10] and bars.error is None
    assert [f.reliable for f in frames] == [False, True, True, True]
    assert all(f.total == 10 and len(f.readings) == len(f.pictures) == 2 for f in frames)


def test_frame_as_json() -> None:
    target = TargetDistribution.parse("gender=50/50")
    frame = run(1, target=target)[0][0]
    table = json.loads(json.dumps(frame.to_dict()))
    assert table["step"] == table["total"] == 1 and table["reliable"] is True and table["size"] == [256, 256]
    assert len(table["pictures"]) == 2
    face = table["pictures"][0][0]
    assert [bar["attribute"] for bar in face["bars"]] == ["gender", "race", "age"] and len(face["box"]) == 4
    assert set(face["bars"][0]) == {"attribute", "label", "spelled", "confidence", "certain", "colour"}
    assert sum(row["share"] for row in table["shares"]["gender"]) == pytest.approx(1)
    assert table["shares"]["gender"][0]["target"] == 0.5 and table["shares"]["race"][0]["target"] is None
    assert frame.image.width > 256 and frame.image is frame.image


def test_a_busy_worker_drops_frames_and_never_the_last() -> None:
    gate, frames = Gate(), []
    bars = LiveBars(READER, gate, frames.append, every=1)
    latents = images()[:1].clone()
    assert bars.offer(1, 5, latents)
    latents.zero_()  # a sampler goes on to work in place: the worker has a copy
    assert gate.begun.wait(PATIENCE)
    for step in (2, 3, 4, 5):
        assert bars.offer(step, 5, images()[:1])  # returns although the decoder stands still
    gate.open.set()
    bars.close(PATIENCE)
    assert [f.step for f in frames] == [1, 5]
    assert torch.equal(gate.seen[0], images()[:1])


def test_a_failure_is_told_once_and_ends_the_bars_alone(caplog: pytest.LogCaptureFixture) -> None:
    def broken(latents: Tensor) -> Tensor:
        raise RuntimeError("out of\nmemory")

    told: list[str] = []
    frames, bars = run_without_waiting(broken, told.append)
    assert frames == [] and told == [bars.error]
    assert (
        bars.error == "live bars stopped (RuntimeError: out of memory); the generation goes on without them"
    )
    assert len([r for r in caplog.records if "live bars stopped" in r.message]) == 1


def run_without_waiting(
    decode: Callable[[Tensor], Tensor], on_error: Callable[[str], None] | None = None
) -> tuple[list[LiveFrame], LiveBars]:
    frames: list[LiveFrame] = []
    bars = LiveBars(READER, decode, frames.append, every=1, on_error=on_error)
    assert bars.offer(1, 3, images()[:1])
    assert bars._thread is not None
    bars._thread.join(PATIENCE)
    assert not bars.offer(2, 3, images()[:1]) and not bars.offer(3, 3, images()[:1])
    bars.close(PATIENCE)
    return frames, bars


def test_a_copy_that_fails_ends_the_bars_alone() -> None:
    class Full:
        def detach(self) -> "Full":
            return self

        def clone(self) -> Tensor:
            raise torch.OutOfMemoryError("out of memory")

    told: list[str] = []
    bars = LiveBars(READER, pictures, lambda frame: None, every=1, on_error=told.append)
    for step in (1, 2):
        assert not bars.offer(step, 2, Full())  # type: ignore[arg-type]
    assert told == [bars.error] and "out of memory" in told[0]
    bars.close()


def test_our_own_errors_keep_their_remedy() -> None:
    def broken(latents: Tensor) -> Tensor:
        raise FairAdapterError("mtcnn.safetensors: expected a weight file, found none; restore it")

    assert run_without_waiting(broken)[1].error.startswith("mtcnn.safetensors: expected")  # type: ignore[union-attr]


def test_closing() -> None:
    idle = LiveBars(READER, pictures, lambda frame: None)
    idle.close()
    idle.close()
    assert not idle.offer(3, 3, images()[:1])
    gate = Gate()
    stuck = LiveBars(READER, gate, lambda frame: None)
    assert stuck.offer(3, 3, images()[:1]) and gate.begun.wait(PATIENCE)
    stuck.close(wait=0.01)  # a decoder that hangs is left behind
    assert stuck._thread is not None and stuck._thread.is_alive()
    gate.open.set()


def test_latents_of_inference_mode() -> None:
    def in_place(latents: Tensor) -> Tensor:
        return latents.mul_(1.0)

    with torch.inference_mode():
        frames, bars = run(1, in_place)
    assert len(frames) == 1 and bars.error is None
