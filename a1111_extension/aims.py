"""What each picture of a generation is drawn at: one target for all, or by a table each prompt's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..shared.adapter import AdapterWeights
from ..shared.attributes import TargetDistribution
from ..shared.errors import FairAdapterError
from ..shared.target_table import TargetTable
from .infotext import readable
from .injection import NativeFiles, strip


@dataclass(frozen=True, eq=False)
class Aim:
    """target: what shares are held against, None where nothing is asked.
    weights, files: None without an adapter, or where it can't be used.  told: the row that it is from.
    """

    target: TargetDistribution | None = None
    weights: AdapterWeights | None = None
    files: NativeFiles | None = None
    told: str = ""

    @property
    def text(self) -> str:
        return "" if self.target is None else readable(self.target)

    @property
    def used(self) -> str:
        """The hash of the weights; empty where there are none."""
        weights = self.weights
        return weights.content_hash if weights is not None and (weights.soft or weights.lora) else ""


@dataclass(eq=False)
class PromptAims:
    """The aims of pictures whose prompts have their own.

    default: of prompts without a row, and of what a row does not name.  make: gives the aim of a target, once
    for each.  say: is told where a prompt's target comes from, if it is the default.
    """

    table: TargetTable
    default: TargetDistribution | None
    make: Callable[[TargetDistribution | None], Aim]
    say: Callable[[str], None]
    places: dict[int, Aim] = field(default_factory=dict)
    _made: dict[TargetDistribution | None, Aim] = field(default_factory=dict)
    _of: dict[str, Aim] = field(default_factory=dict)

    def put(self, first: int, prompts: Sequence[str]) -> list[Aim]:
        """The aims of pictures `first` and on of the job, which from now on have these prompts."""
        aims = [self._aim(strip(prompt)) for prompt in prompts]
        self.places |= {first + index: aim for index, aim in enumerate(aims)}
        return aims

    def _aim(self, prompt: str) -> Aim:
        if prompt not in self._of:
            choice = self.table.choose(prompt, self.default)
            if choice.row is None:
                self.say(choice.told)
            if choice.target not in self._made:
                self._made[choice.target] = self.make(choice.target)
            told = "" if choice.row is None else choice.told
            self._of[prompt] = replace(self._made[choice.target], told=told)
        return self._of[prompt]

    @property
    def files(self) -> frozenset[str]:
        """Names of the files that this job needs: none may go before it ends."""
        found = [aim.files for aim in self._made.values() if aim.files is not None]
        return frozenset(name for files in found for name in (files.token, files.lora) if name)


def shared_lora(aims: Sequence[Aim]) -> str | None:
    """The LoRA of the pictures of one batch; None without one.

    Raises FairAdapterError where they need several: hosts put a LoRA onto the model, not onto a picture.
    """
    names = {aim.files.lora for aim in aims if aim.files is not None}
    if len(names) > 1:
        raise FairAdapterError(
            f"targets by prompt: expected one target for all pictures of a batch, found {len(names)}, which "
            "a LoRA can't follow; set the batch size to 1 (more batches instead), or choose an adapter of "
            "soft tokens alone"
        )
    return next(iter(names), None)


class PictureText(str):
    """A value of the parameters that each picture has its own of: hosts call it for each; its text is that of
    the first, for those that don't."""

    of: Callable[[int], str]

    def __new__(cls, of: Callable[[int], str]) -> PictureText:
        text = super().__new__(cls, of(0))
        text.of = of
        return text

    def __call__(self, *, p: Any = None, index: int = 0, use_main_prompt: bool = False, **_: Any) -> str:
        """p: the host's job.  index: of the picture in its batch.  use_main_prompt: for a grid of all."""
        if use_main_prompt:
            return self.of(0)
        return self.of(getattr(p, "iteration", 0) * getattr(p, "batch_size", 1) + (index or 0))
