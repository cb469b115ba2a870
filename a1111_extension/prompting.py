"""Soft tokens and LoRA on their way into the prompts of the host's job, hidden or for all to see."""

from __future__ import annotations

from typing import Any

from ..shared.adapter import FairnessAdapter
from .injection import insert_each, visible_words
from .job import Job

ORDINARY, NEGATIVE = ("prompts", "hr_prompts"), ("negative_prompts", "hr_negative_prompts")


def insert_tokens(p: Any, job: Job) -> None:
    """Tokens into the prompts of the batch, which the host has parsed and encodes next."""
    assert job.adapter is not None
    tokens = [aim.files.token if aim.files else None for aim in job.aims(p)]
    for name in _lists(job.adapter):
        if any(tokens) and getattr(p, name, None):
            setattr(p, name, insert_each(getattr(p, name), tokens))


def write_into_prompts(p: Any, job: Job, batch: slice | None = None) -> None:
    """Tokens and LoRA into the lists of all prompts, or into those of one batch.

    The host has cut out the prompts of a batch already; those of its hires pass it cuts out later.
    """
    assert job.adapter is not None
    for name in _lists(job.adapter):
        everything = list(getattr(p, f"all_{name}", None) or [])
        is_cut, part = batch is not None and not name.startswith("hr_"), batch or slice(None)
        files = [job.aim(place).files for place in range(len(everything))[part]]
        if name in NEGATIVE:
            words = [each.token if each else None for each in files]
        else:
            words = [visible_words(each) if each else None for each in files]
        if not any(words):
            continue
        everything[part] = insert_each(getattr(p, name) if is_cut else everything[part], words)
        setattr(p, f"all_{name}", everything)
        if is_cut:
            setattr(p, name, everything[part])


def _lists(adapter: FairnessAdapter) -> tuple[str, ...]:
    """Names of the host's lists of prompts that tokens go into."""
    return (*ORDINARY, *(NEGATIVE if adapter.negative_tokens else ()))
