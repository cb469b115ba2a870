"""Threads that overlap: switches of the process are restored, and bars leave a sampler's picture as it is."""

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from fair_adapter.shared.live import LiveBars, LiveFrame
from fair_adapter.shared.precision import _tf32_switches, full_precision
from fair_adapter.shared.quiet import quiet
from fair_adapter.shared.reader import FaceReader
from fair_adapter.shared.switches import OwnNumbers, apart
from fair_adapter.tests.fixture_faces import images

PATIENCE = 300.0


def tf32() -> list[Any]:
    """The flags of the process; they are there without a GPU."""
    return [getattr(owner, name) for owner, name, _ in _tf32_switches()]


def log() -> list[Any]:
    return [logging.root.manager.disable]


@pytest.fixture(autouse=True)
def tf32_on():
    """As a host may have it."""
    switches, before = _tf32_switches(), tf32()
    for owner, name, off in switches:
        setattr(owner, name, "tf32" if off == "ieee" else True)
    yield
    for (owner, name, _), value in zip(switches, before):
        setattr(owner, name, value)


SWITCHES = pytest.mark.parametrize(
    ("changed", "read"),
    [(partial(full_precision, torch.device("cuda")), tf32), (quiet, log)],
    ids=["precision", "quiet"],
)


@SWITCHES
@pytest.mark.filterwarnings("ignore:User provided device_type")
@pytest.mark.parametrize("first_out", [0, 1])
def test_overlapping_threads_restore_what_was_there(
    changed: Callable[[], AbstractContextManager[None]], read: Callable[[], list[Any]], first_out: int
) -> None:
    """Two threads go in one after the other and out in either order."""
    before = read()
    within = [threading.Event(), threading.Event()]
    out = [threading.Event(), threading.Event()]

    def work(number: int) -> None:
        with changed():
            within[number].set()
            assert out[number].wait(PATIENCE)

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for number, thread in enumerate(threads):
        thread.start()
        assert within[number].wait(PATIENCE)
        inside = read()
        assert all(now != then for now, then in zip(inside, before))
    for number in (first_out, 1 - first_out):
        out[number].set()
        threads[number].join(PATIENCE)
        assert read() == (inside if number == first_out else before)


@SWITCHES
@pytest.mark.filterwarnings("ignore:User provided device_type")
def test_many_threads_restore_what_was_there(
    changed: Callable[[], AbstractContextManager[None]], read: Callable[[], list[Any]]
) -> None:
    before, seen = read(), []

    def work() -> None:
        for _ in range(200):
            with changed(), changed():  # a classifier within a reader
                seen.append(read())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert read() == before and len(seen) == 1600 and before not in seen


@SWITCHES
@pytest.mark.filterwarnings("ignore:User provided device_type")
def test_a_thread_that_is_apart_changes_nothing(
    changed: Callable[[], AbstractContextManager[None]], read: Callable[[], list[Any]]
) -> None:
    before = read()
    with apart():
        with apart(), changed():
            assert read() == before
        with changed():
            assert read() == before
    with changed():
        assert read() != before


def test_networks_are_made_without_the_numbers_of_a_sampler() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with OwnNumbers():
        first = torch.nn.Conv2d(3, 4, 3).weight
        torch.nn.Embedding(4, 4), torch.rand(3), torch.randperm(3), torch.nn.Linear(2, 2, device="meta")
        mine = torch.rand(2, generator=torch.Generator().manual_seed(5))
    assert torch.equal(torch.rand(4), expected) and first.std() > 0
    assert torch.equal(mine, torch.rand(2, generator=torch.Generator().manual_seed(5)))


def sample(bars: Callable[[int, int, Tensor], None] | None = None) -> Tensor:
    """Stands for an ancestral sampler: noise of torch's global generator at each step."""
    torch.manual_seed(7)
    x = images()[:1].clone()
    for step in range(1, 5):
        x = 0.9 * x + 0.1 * torch.randn_like(x)
        if bars is not None:
            bars(step, 4, x)
    return x


@pytest.mark.parametrize("classifier", ["default", "evaluator"])
def test_a_picture_is_the_same_to_the_last_bit_while_bars_are_read(classifier: str) -> None:
    """The reader is new: the worker loads detector and classifier in the midst of sampling. The decoder is
    a host's, which makes its network and switches the log and TF32 off at the first use."""
    shown, found = threading.Event(), []
    before = tf32(), log()

    def decode(latents: Tensor) -> Tensor:
        torch.nn.Conv2d(4, 4, 3)
        with full_precision(torch.device("cuda")), quiet():
            found.append((tf32(), log()))
        return latents

    def show(frame: LiveFrame) -> None:
        found.append((tf32(), log()))
        shown.set()

    def offer(step: int, total: int, x0: Tensor) -> None:
        shown.clear()
        assert bars.offer(step, total, x0) and shown.wait(PATIENCE)

    bars = LiveBars(FaceReader(classifier), decode, show, every=1)
    watched = sample(offer)
    bars.close(PATIENCE)
    assert bars.error is None and found == [before] * 8
    assert torch.equal(watched, sample())
