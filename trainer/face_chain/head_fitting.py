"""Linear heads fitted on labelled faces: regression, choice of the weight decay, accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fair_adapter.shared.attributes import AGE, GENDER, Attribute
from fair_adapter.shared.classifiers.default import OLD_FROM
from fair_adapter.shared.classifiers.heads import OWN
from fair_adapter.trainer.face_chain.calibrate import Calibration, calibrate, label
from fair_adapter.trainer.face_chain.judge_faces import Faces

BORDER = (37, 43)  # years: too near to 40 to be called young or old
DECAYS = (1e-3, 3e-4, 1e-4, 3e-5)  # of the embedding's weights; the net's own answers decay a tenth as much
FOLDS = 5
SURE = 0.1  # log-odds of gender over 10, below which a net's own answer counts for nothing
YEARS_DECAY = 1e-3
Head = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Domain:
    """Faces of one kind with the classes of one attribute: (N,), -1 where nothing is known."""

    faces: Faces
    classes: Tensor

    def where(self, chosen: Tensor) -> Domain:
        """The same faces; those that are not chosen lose their label."""
        return Domain(self.faces, torch.where(chosen, self.classes, -1))

    def of(self, judge: str, variants: bool) -> tuple[Tensor, Tensor]:
        """Inputs (M, D + 3) and classes (M,) of the labelled faces, with their harder forms or without."""
        known = self.classes >= 0
        inputs = self.faces.inputs[judge][known]
        inputs = inputs if variants else inputs[:, :1]
        return inputs.flatten(0, 1), self.classes[known].repeat_interleave(inputs.shape[1])


def people_classes(faces: Faces, attribute: Attribute) -> Tensor:
    """Classes (N,) of rendered people or photographs, from their columns; ages near 40 are left out."""
    if attribute != AGE:
        names = [row.get(attribute.name, "") for row in faces.rows]
        return torch.tensor([attribute.index(n) if n in attribute.classes else -1 for n in names])
    years = torch.tensor([float(row["age"]) for row in faces.rows])
    near = (years >= BORDER[0]) & (years <= BORDER[1])
    return torch.where(near, -1, (years >= OLD_FROM).long())


def portrait_classes(faces: Faces, attribute: Attribute) -> Tensor:
    """Classes (N,) by the words that portraits were searched for. A picture counts once; one that was found
    under words for different classes not at all."""
    named: dict[int, dict[int, int]] = {}  # group -> class -> first face
    for i, (group, row) in enumerate(zip(faces.groups, faces.rows)):
        found = label(row, attribute)
        if found is not None:
            named.setdefault(group, {}).setdefault(found, i)
    classes = torch.full((len(faces),), -1)
    for group in named.values():
        if len(group) == 1:
            ((found, i),) = group.items()
            classes[i] = found
    return classes


def fit_head(parts: Sequence[tuple[Tensor, Tensor]], count: int, decay: float) -> Head:
    """Multinomial logistic regression on (inputs (M, D + 3), classes (M,)) of several kinds of faces.

    Each class of each kind has the same weight. Returns float32 weight (count, D + 3) and bias (count,).
    """
    inputs = torch.cat([x for x, _ in parts]).double()
    classes = torch.cat([y for _, y in parts])
    weights = torch.cat([1 / torch.bincount(y, minlength=count).double()[y] for _, y in parts])
    weight = torch.zeros(count, inputs.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    decays = _decays(inputs.shape[1], decay)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=400, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        each = F.cross_entropy(inputs @ weight.T + bias, classes, reduction="none")
        loss = (weights * each).sum() / weights.sum() + (decays * weight.square()).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return weight.detach().float(), bias.detach().float()


def fit_years(parts: Sequence[tuple[Tensor, Tensor]], decay: float = YEARS_DECAY) -> Head:
    """Ridge regression of the age in years on (inputs (M, D + 3), years (M,)), each kind of equal weight."""
    inputs = torch.cat([x for x, _ in parts]).double()
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=torch.float64)], 1)
    years = torch.cat([y for _, y in parts]).double()
    weights = torch.cat([torch.full((len(y),), 1 / len(y) / len(parts)).double() for _, y in parts])
    decays = torch.cat([_decays(inputs.shape[1] - 1, decay), torch.zeros(1, dtype=torch.float64)])
    weighted = inputs.T * weights
    found = torch.linalg.solve(weighted @ inputs + torch.diag(decays), weighted @ years).float()
    return found[None, :-1], found[-1:]


def _decays(width: int, decay: float) -> Tensor:
    """Weight decay (width,) of a head's inputs: the net's own answers come last."""
    decays = torch.full((width,), decay, dtype=torch.float64)
    decays[-OWN:] /= 10
    return decays


@dataclass(frozen=True)
class Fitted:
    """A head of one attribute, the weight decay that was chosen, its calibration on faces it never saw."""

    head: Head
    decay: float
    calibration: Calibration


def fit_attribute(judge: str, learnt: Domain, checked: Domain, portraits: Domain, words: Domain) -> Fitted:
    """A head fitted on the ``learnt`` people and the ``portraits``, of which ``words`` have true labels.

    Its decay is the one that carries over: the least mean of the loss on the ``checked`` people and of the
    loss on the portraits' words of a head that learnt from people alone. Calibrated on the ``checked`` people
    and, by `FOLDS` cross-validation, on the portraits' words.
    """
    count = len(torch.unique(learnt.classes[learnt.classes >= 0]))
    people, labelled = learnt.of(judge, True), words.of(judge, False)

    def loss(decay: float) -> float:
        both = fit_head([people, portraits.of(judge, True)], count, decay)
        pairs = [_logits(both, checked.of(judge, False)), _logits(fit_head([people], count, decay), labelled)]
        return float(np.mean([float(F.cross_entropy(*pair)) for pair in pairs]))

    decay = min(DECAYS, key=loss)
    fold = torch.arange(len(portraits.faces)) % FOLDS
    sets = []
    for k in range(FOLDS):
        without = fit_head([people, portraits.where(fold != k).of(judge, True)], count, decay)
        sets.append(_logits(without, words.where(fold == k).of(judge, False)))
    head = fit_head([people, portraits.of(judge, True)], count, decay)
    logits, classes = (torch.cat(v) for v in zip(_logits(head, checked.of(judge, False)), *sets))
    return Fitted(head, decay, calibrate(logits.double().numpy(), classes.numpy()))


def own_classes(inputs: Tensor, attribute: Attribute) -> Tensor:
    """Classes (N,) of what a net says itself in its inputs (N, D + 3), -1 where it is unsure or silent."""
    male, years = inputs[:, -OWN], inputs[:, -1] * 100
    if attribute == GENDER:
        return torch.where(male.abs() < SURE, -1, (male > 0).long())
    if attribute == AGE:
        return torch.where((years >= BORDER[0]) & (years <= BORDER[1]), -1, (years >= OLD_FROM).long())
    return torch.full((len(inputs),), -1)


def _logits(head: Head, data: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return data[0] @ head[0].T + head[1], data[1]


def accuracy(logits: Tensor, classes: Tensor, balanced: bool) -> tuple[float, int, int]:
    """Share of right answers (balanced: mean over the classes), right answers, answers."""
    right = logits.argmax(1) == classes
    share = right.double().mean()
    if balanced:
        share = torch.stack([right[classes == k].double().mean() for k in classes.unique()]).mean()
    return float(share), int(right.sum()), len(right)
