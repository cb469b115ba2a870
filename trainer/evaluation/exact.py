"""Exact batches, measured: how near to their composition batches come by five ways, and what that costs.

    base, redraws       the model alone; what misses is drawn again
    adapter             one target for all pictures
    adapter, redraws
    steered             every picture its own target
    all                 that, a second plan on predictions of the unfinished pictures, and redraws

The noises of a batch are the same for all ways, and of redraw k of a picture, too. Cost is rows through the
network, in those of a plain batch; what is decoded and read besides is told beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ...shared.adapter import AdapterWeights, FairnessAdapter
from ...shared.attributes import TargetDistribution
from ...shared.perceived import Cell, Perceived
from ...shared.quota import cells
from ...shared.quota_batch import ExactBatch, Order
from ...shared.quota_steering import PLAN_AT, PUSH, Replan, Steerer, Steering, replan
from ...shared.sampling import Guidance, rollout
from ...shared.seeds import noise_seed, starting_noise
from ..configuration.prompts import Prompt
from ..families.steered import SteeredModel
from .measuring import Bench
from .readings import SALT, Plan, Readings


@dataclass(frozen=True)
class Way:
    """adapter: on the model at all.  steered: each picture at its own target.  second: a second plan.
    redraws: what misses is drawn again."""

    name: str
    adapter: bool = True
    steered: bool = False
    second: bool = False
    redraws: bool = False


BASE = Way("base, redraws", adapter=False, redraws=True)
WAYS = (
    BASE,
    Way("adapter"),
    Way("adapter, redraws", redraws=True),
    Way("steered", steered=True),
    Way("all", steered=True, second=True, redraws=True),
)


@dataclass
class Drawn:
    """A batch as one way drew it.

    batch: its bookkeeping.  readings: of its pictures, in order.  aimed: share of the first pictures that
    fill the cells they aimed at in the end.  decoded: unfinished pictures that were decoded and read.
    similarity: (N,) cosine with the base model's pictures of the same noises; empty without an encoder.
    accepted: (m, 2) of redraws that were kept: whether they are of their cell by each judge.
    """

    batch: ExactBatch
    readings: Readings
    aimed: float
    decoded: int
    similarity: np.ndarray = field(default_factory=lambda: np.zeros(0))
    accepted: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), bool))


class ExactBench:
    """Draws batches of `size` pictures and reads them.

    target: of the cells, in the observer's attributes.  plan: steps, scale and negative prompt.
    budget: redraws of a batch.  push: strength for pictures that the second plan finds on the wrong side.
    """

    def __init__(
        self,
        bench: Bench,
        adapter: FairnessAdapter | None,
        target: TargetDistribution,
        plan: Plan,
        size: int,
        budget: int,
        strength: float = 1.0,
        push: float = PUSH,
    ) -> None:
        self.bench, self.target, self.plan, self.size, self.budget = bench, target, plan, size, budget
        self.strength, self.push = strength, push
        self.wanted = cells(target, size)
        self.steerer = None if adapter is None else Steerer(adapter)
        self.shared = None if adapter is None else adapter.at(None, strength)
        self.none = AdapterWeights({}, {}, target, 0.0)
        self.model = SteeredModel(bench.model, adapter is not None and adapter.negative_tokens)
        self._base: dict[tuple[str, int], np.ndarray] = {}  # image features of the base model's pictures

    def ways(self) -> tuple[Way, ...]:
        return WAYS if self.steerer is not None else (BASE,)

    def draw(self, way: Way, prompt: Prompt, number: int) -> Drawn:
        """Batch `number` of a prompt, to the last redraw."""
        seeds = [noise_seed(prompt.text, number * self.size + i, SALT) for i in range(self.size)]
        batch = ExactBatch(self.target, self.wanted, seeds, self.budget if way.redraws else 0)
        perceived, found, decoded = self._pictures(way, prompt, batch.orders, batch)
        batch.take(perceived)
        aimed = perceived.fills([order.cell for order in batch.orders]).diagonal()
        accepted = []
        while orders := batch.redraws():
            more, rows, _ = self._pictures(way, prompt, orders)
            for row, kept in enumerate(batch.take(more, orders)):
                if kept:
                    found = _replaced(found, orders[row].place, rows, row)
                    accepted.append(self._agreement(rows, row, batch.cell(orders[row].place)))
        agreed = np.array(accepted, dtype=bool).reshape(-1, 2)
        similarity = self._similarity(prompt, batch.orders, found)
        return Drawn(batch, found, float((aimed >= 0.5).mean()), decoded, similarity, agreed)

    # ---- drawing and reading

    @torch.no_grad()
    def _pictures(
        self, way: Way, prompt: Prompt, orders: Sequence[Order], batch: ExactBatch | None = None
    ) -> tuple[Perceived, Readings, int]:
        """Pictures of some orders: readings, and how many unfinished ones were decoded.  batch: to be planned
        a second time, where the way does so."""
        noise = starting_noise([order.seed for order in orders], self.bench.model.latent_shape)
        guidance = partial(self.model.guidance, prompt.text, self.plan.scale, negative=self.plan.negative)
        first = guidance(self._steering(way, [order.cell for order in orders]))
        sampler = self.bench.model.sampler(self.plan.steps)
        at = max(1, round(PLAN_AT * sampler.steps)) if way.second and batch is not None else 0

        def second(k: int, latents: Tensor, predicted: Tensor) -> Guidance | None:
            if k != at or batch is None:
                return None
            seen, _ = self._read(self.bench.model.decode(predicted).clamp(0, 1), prompt.text)
            return guidance(self._replanned(replan(seen, self.wanted, range(self.size)), batch))

        noise = noise.to(self.bench.model.device)
        latents = rollout(self.model.denoise, sampler, noise, first, callback=second).final
        perceived, found = self._read(self.bench.model.decode(latents).clamp(0, 1), prompt.text)
        return perceived, found, self.size if at else 0

    def _steering(self, way: Way, wanted: Sequence[Cell]) -> Steering:
        if way.steered and self.steerer is not None:
            return self.steerer.plan(wanted, self.strength)
        weights = self.shared if way.adapter and self.shared is not None else self.none
        return Steering((weights,), (0,) * len(wanted))

    def _replanned(self, plan: Replan, batch: ExactBatch) -> Steering:
        assert self.steerer is not None
        batch.aim(plan.places)
        strengths = [self.push if i in plan.changed else 1.0 for i in range(self.size)]
        return self.steerer.plan(
            [order.cell for order in batch.orders], [s * self.strength for s in strengths]
        )

    def _read(self, images: Tensor, text: str) -> tuple[Perceived, Readings]:
        view = self.bench.observer.look(images)
        perceived = Perceived.of_tensors(view.probabilities(), view.has_face, self.target.attributes)
        return perceived, self.bench.reader.of_view(view, text, 0)

    # ---- beside the base model, and by the other judge

    def _similarity(self, prompt: Prompt, orders: Sequence[Order], found: Readings) -> np.ndarray:
        features = found.encoded()[0] if found.encoded() else None
        if features is None:
            return np.zeros(0)
        new = [order for order in orders if (prompt.text, order.seed) not in self._base]
        if new:
            _, rows, _ = self._pictures(BASE, prompt, new)
            for order, row in zip(new, rows.encoded()[0]):
                self._base[prompt.text, order.seed] = row
        return (features * np.stack([self._base[prompt.text, order.seed] for order in orders])).sum(axis=1)

    def _agreement(self, rows: Readings, row: int, cell: Cell) -> tuple[bool, bool]:
        own = self.labels(rows, judged=False)[row]
        judged = self.labels(rows, judged=True)[row] if self.judged else own * 0 - 1
        wanted = np.array([a.index(cell[a.name]) for a in self.target.attributes])
        return bool((own == wanted).all()), bool((judged == wanted).all())

    @property
    def judged(self) -> bool:
        """Whether the independent classifier reads all of the target."""
        judge = self.bench.judge
        return judge is not None and all(a in judge.attributes for a in self.target.attributes)

    def labels(self, found: Readings, judged: bool) -> np.ndarray:
        """(n, A) classes in the target's order, by one of the judges, -1 without a face."""
        attributes = self.bench.judge.attributes if judged else self.bench.attributes
        places = [list(attributes).index(a) for a in self.target.attributes]
        return (found.judged if judged else found.labels)[:, places]


def _replaced(found: Readings, place: int, other: Readings, row: int) -> Readings:
    """Readings with one picture's row taken from others."""
    columns = {}
    for name in (f.name for f in fields(Readings)):
        values = getattr(found, name)
        if name not in ("widths", "pictures") and len(values):
            values = values.copy()
            values[place] = getattr(other, name)[row]
        columns[name] = values
    return Readings(**columns)


def told_classes(batch: ExactBatch) -> np.ndarray:
    """(N, A) classes of the cells that the pictures of a batch count for."""
    attributes = batch.target.attributes
    return np.array([[a.index(batch.cell(i)[a.name]) for a in attributes] for i in range(len(batch.wanted))])
