"""Families whose prompts a language model encodes: one encoder, whose chat template stands around the prompt.

Soft tokens stand where the user's words begin, after `<|im_start|>user\\n`: Krea 2 cuts the template off by
counting from the front, and ComfyUI's template ends there too. The encoder is causal, so what stands before
them is as it was. Weights are published in bfloat16 and are read in it as they are.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
# (diffusers and transformers annotate these wrongly)

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from torch import nn

from ...shared.errors import FairAdapterError
from ...shared.lora import TEXT_PREFIX, language_layers
from ...shared.schedulers import LinearSampler
from .base import LATENT_FACTOR, DiffusionModel, TextEncoder
from .flow import flow_sampler, resolution_shift
from .recompute import recompute

POSITIONS = 512  # of a prompt, template and soft tokens included where they are not cut off
SIZE = 1024  # px that these models were made for; their configuration does not say it
PATCH = 2  # latents of a side for one token of the transformer


class LanguageFamily(DiffusionModel):
    """The parts of such a pipeline, and what follows from them.

    encoder_name: of its text encoder, as ComfyUI's embedding files call it.
    """

    encoder_name: ClassVar[str]
    finer_first = False

    tokenizer: Any
    text_encoder: Any
    transformer: Any

    @property
    @abstractmethod
    def language_model(self) -> Any:
        """The text encoder's stack of layers, with its width in `config`."""

    @property
    @abstractmethod
    def text_width(self) -> int:
        """That the transformer expects of the text encoder."""

    def check_encoder(self, source: str) -> None:
        """Raises FairAdapterError for a text encoder of another size."""
        found = int(self.language_model.config.hidden_size)
        if found != self.text_width:
            raise FairAdapterError(
                f"{source}: expected a text encoder of width {self.text_width} ({self.encoder_name}), which "
                f"{self.title} reads, found one of width {found}; put the model's own in its place"
            )

    @property
    def network(self) -> Any:
        return self.transformer

    @property
    def encoders(self) -> tuple[TextEncoder, ...]:
        first = len(self.tokenizer(self.opening, add_special_tokens=False).input_ids)
        return (
            TextEncoder(self.encoder_name, self.text_encoder, self.tokenizer, TEXT_PREFIX, first, POSITIONS),
        )

    @property
    @abstractmethod
    def opening(self) -> str:
        """What stands before the prompt and the soft tokens."""

    def text_layers(self) -> dict[str, nn.Linear]:
        return language_layers(self.language_model, TEXT_PREFIX)

    @property
    def tokens(self) -> int:
        """Of a picture in the transformer."""
        _, height, width = self.latent_shape
        return (height // PATCH) * (width // PATCH)

    def sampler(self, steps: int) -> LinearSampler:
        return flow_sampler(self.scheduler, steps, self.shift())

    def shift(self) -> float:
        """mu, for a scheduler whose shift is not fixed."""
        return resolution_shift(self.scheduler.config, self.tokens)

    def picture_side(self) -> int:
        """Of the latents."""
        return self.side or SIZE // LATENT_FACTOR

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), **({"distilled": True} if self.distilled else {})}

    def checkpoint(self, decoder: bool, network: bool) -> None:
        """As for every model; the text encoder too goes back layer by layer."""
        super().checkpoint(decoder, network)
        recompute(self.language_model.layers, network)

    def widths(self) -> dict[str, int]:
        return {
            self.encoder_name: int(self.language_model.config.hidden_size),
            "transformer": int(self.inner_width),
        }

    @property
    @abstractmethod
    def inner_width(self) -> int:
        """Of the transformer."""
