"""Several classifiers side by side, "default+skin_tone": each reads attributes of its own."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..attributes import Attribute
from ..errors import FairAdapterError
from .base import AttributeClassifier

JOIN = "+"


class Combined(nn.Module):
    """An `AttributeClassifier` of the attributes of all parts, in their order.

    Raises FairAdapterError where two parts read the same attribute.
    """

    def __init__(self, parts: Sequence[AttributeClassifier]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)  # type: ignore[arg-type]
        self.identity = JOIN.join(part.identity for part in parts)
        self.attributes: tuple[Attribute, ...] = tuple(a for part in parts for a in part.attributes)
        names = [a.name for a in self.attributes]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise FairAdapterError(
                f"classifier '{self.identity}': expected parts that read different attributes, found "
                f"{', '.join(twice)} in more than one; leave one of them out"
            )

    def forward(self, faces: Tensor) -> dict[str, Tensor]:
        """Calibrated logits {attribute: (N, K)} of aligned faces (N, 3, 256, 256) RGB in [0, 1]."""
        return self.with_years(faces)[0]

    def with_years(self, faces: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """The same logits, and the ages in years (N,) of the first part that tells them."""
        logits: dict[str, Tensor] = {}
        ages: Tensor | None = None
        for part in self.parts:
            read, years = part.with_years(faces)  # type: ignore[operator]
            logits |= read
            ages = years if ages is None else ages
        return logits, ages
