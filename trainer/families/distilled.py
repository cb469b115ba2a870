"""Models with their guidance in the weights: they are asked with the prompt alone.

Distillation is declared, by `model.distilled` or by the model itself, and never guessed: weights do not show
it.
"""

from __future__ import annotations

from typing import Any

from ...shared.errors import FairAdapterError
from ...shared.sampling import Conditioning, Guidance


def declare_distilled(model: Any, distilled: bool) -> None:
    """Say of a model whether it is; a distilled one's usual guidance scale is 1."""
    if distilled != model.distilled:
        model.distilled = distilled
        model.guidance_scale = 1.0 if distilled else type(model).guidance_scale


def unguided(conditional: Conditioning, scale: float, title: str) -> Guidance:
    """The guidance of a distilled model: its conditional branch.

    title: of its family.  Raises FairAdapterError for a scale other than 1.
    """
    if scale != 1.0:
        raise FairAdapterError(
            f"guidance scale: expected 1 for a distilled {title} model, which has its guidance in its "
            f"weights and is never asked without a prompt, found {scale:g}; set model.guidance_scale=1, or "
            "model.distilled=false for a model that is not distilled"
        )
    return Guidance(conditional)
