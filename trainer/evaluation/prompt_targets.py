"""Prompts that each have their own target: which these are, and how far the shares of each are off its own.

A prompt's error is the mean distance over classes between the shares of its faces and its target. Means and
intervals are over prompts, which are drawn anew; an interval so includes the noise of the pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...shared.attributes import Attribute, TargetDistribution
from ...shared.metrics import frequencies, prompt_interval, target_error, target_error_floor
from ...shared.table_files import read_table
from ...shared.target_table import Choice, in_order, mean_target
from ..configuration.prompts import Prompt


@dataclass(frozen=True)
class PromptTargets:
    """targets: of each prompt, all over the same attributes.  choices: where each comes from."""

    targets: tuple[TargetDistribution, ...]
    choices: tuple[Choice, ...]

    @cached_property
    def mean(self) -> TargetDistribution:
        """What they ask for together."""
        return mean_target(self.targets)

    @property
    def unmatched(self) -> list[str]:
        """What there is to say of prompts that take the default."""
        return [choice.told for choice in self.choices if choice.row is None]

    def to_dict(self, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
        """JSON form: prompt, target, and "from": the row with source and year, null for the default."""
        rows = []
        for prompt, target, choice in zip(prompts, self.targets, self.choices):
            row = choice.row
            origin = None if row is None else {"row": row.number, "source": row.source, "year": row.year}
            rows.append({"prompt": prompt.text, "target": target.to_text(), "from": origin})
        return rows


def read_targets(path: Path, prompts: Sequence[Prompt], default: TargetDistribution) -> PromptTargets:
    """The targets that a table gives to prompts.

    default: for prompts without a row and for what a row does not name; rows may name its attributes.
    Raises FairAdapterError as `read_table`.
    """
    table = read_table(path, default.attributes)
    choices = tuple(table.choose(prompt.text, default) for prompt in prompts)
    targets = tuple(in_order(choice.target or default, default) for choice in choices)
    return PromptTargets(targets, choices)


def off_target(counts: np.ndarray, wanted: np.ndarray) -> dict[str, Any]:
    """target_error, target_ci95 and target_floor over the prompts with a face.

    counts: (P, K) faces.  wanted: (P, K) shares.  There must be a face.
    """
    seen = counts.sum(axis=1) > 0
    errors = target_error(frequencies(counts[seen]), wanted[seen])
    floors = [target_error_floor(int(n), aim) for n, aim in zip(counts[seen].sum(axis=1), wanted[seen])]
    interval = prompt_interval(errors, within=(0.0, 1.0))
    mean = float(errors.mean())
    return {
        "target_error": mean,
        "target_ci95": list(interval or (mean, mean)),
        "target_floor": float(np.mean(floors)),
    }


def added_off_target(before: np.ndarray, after: np.ndarray, wanted: np.ndarray) -> dict[str, Any]:
    """What a second model adds to the error of the first, prompts that have a face in both paired.

    before, after: (P, K) faces.  wanted: (P, K).  Empty where no prompt has faces in both.
    """
    seen = (before.sum(axis=1) > 0) & (after.sum(axis=1) > 0)
    if not seen.any():
        return {}
    first, second = (target_error(frequencies(counts[seen]), wanted[seen]) for counts in (before, after))
    added = second - first
    interval, mean = prompt_interval(added, within=(-1.0, 1.0)), float(added.mean())
    return {
        "target_error": mean,
        "target_ci95": list(interval or (mean, mean)),
        "target_error_before": float(first.mean()),
    }


def wanted_shares(
    attributes: Sequence[Attribute], targets: Sequence[TargetDistribution]
) -> np.ndarray | None:
    """(P, K) shares of the cells of some attributes; None where the targets say nothing of them."""
    if not all(set(attributes) <= set(target.attributes) for target in targets):
        return None
    return np.stack([target.marginal(*(a.name for a in attributes)).reshape(-1) for target in targets])


def faces_of(labels: Sequence[np.ndarray], classes: int) -> np.ndarray:
    """(P, K) faces of each class of each prompt.  labels: (n,) of each, -1 for no face."""
    return np.stack([np.bincount(row[row >= 0], minlength=classes) for row in labels])
