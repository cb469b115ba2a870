"""What the core needs of a diffusion pipeline, whatever its family.

A family is one file in this folder with one subclass of `DiffusionModel`; `registry.py` finds it there.
Prompts are encoded as the hosts encode them, soft tokens included; latents are float32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from ...shared.adapter_info import BaseModel, FamilyNames, weights_hash
from ...shared.errors import FairAdapterError
from ...shared.lora import text_layers
from ...shared.sampling import Conditioning, Guidance, Outside, rollout
from ...shared.schedulers import LinearSampler, linear_sampler
from ...shared.seeds import starting_noise
from ..configuration.config import check_size
from .cues import Cues
from .distilled import unguided
from .file_parts import FilePart
from .header import Header
from .marks import with_marks
from .recompute import RECOMPUTED, recompute_decoder

DECODED = 2**21  # pixels that are decoded at a time where no gradient is asked for: 8 pictures of 512 px
LATENT_FACTOR = 8  # px of a side for one latent, in every family here

Soft = Mapping[str, Tensor]  # encoder -> soft tokens (n, d)


@dataclass(frozen=True)
class TextEncoder:
    """One text encoder of a model.

    name: clip_l, clip_g, clip_h or t5xxl.  lora: prefix of its LoRA's kohya names, None where it gets none.
    first: position of the first soft token, after the start token if there is one.
    length: positions of an encoded prompt.
    """

    name: str
    module: Any
    tokenizer: Any
    lora: str | None
    first: int = 1
    length: int = 77


class ImageModel(ABC):
    """Whatever pictures can be drawn with: a base model, or one with an adapter on it."""

    @property
    @abstractmethod
    def device(self) -> torch.device: ...

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a picture's latents."""

    @abstractmethod
    def sampler(self, steps: int) -> LinearSampler:
        """The scheduler's coefficients. Raises FairAdapterError for one that is not linear."""

    @abstractmethod
    def guidance(self, prompts: Sequence[str], scale: float, negative: str = "") -> Guidance:
        """Both guidance branches of N prompts."""

    def outside(self, prompts: Sequence[str], scale: float, negative: str = "") -> Outside | None:
        """What these prompts are drawn with where an adapter does not act; None if it acts all along."""
        return None

    @abstractmethod
    def denoise(self, inputs: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's output (B, C, h, w) for scaled latents of that shape."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (N, 3, H, W), RGB; mostly within [0, 1], not clamped."""

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        scale: float,
        steps: int = 20,
        batch: int = 32,
        negative: str = "",
    ) -> Tensor:
        """Pictures (N, 3, H, W) in [0, 1] of one prompt and one noise seed each; `batch` at a time.

        Prompts that are all the same are encoded once.
        """
        sampler = self.sampler(steps)
        pictures = []
        for i in range(0, len(prompts), batch):
            texts = list(prompts[i : i + batch])
            noise = starting_noise(seeds[i : i + batch], self.latent_shape).to(self.device)
            texts = texts[:1] if len(set(texts)) == 1 else texts
            guidance = self.guidance(texts, scale, negative)
            outside = self.outside(texts, scale, negative)
            trajectory = rollout(self.denoise, sampler, noise, guidance, outside=outside)
            pictures.append(self.decode(trajectory.final).clamp(0, 1))
        return torch.cat(pictures)


class DiffusionModel(ImageModel):
    """The parts of a pipeline and how the core calls them.

    architecture: as adapter files call it.  title: for people.
    guidance_scale: usual for the family, or what this very model says it works at.
    cues: how to tell the prompts of its pictures, for a model that draws such cues.
    pipelines: diffusers classes that a model_index.json may name.
    marks: beginnings of keys that, together, only this family's complete single-file checkpoints have.
    file_parts: networks of such files.
    network_marks: of those without the text encoders, where `from_network_file` reads such files.
    file_needs_config: what such a file leaves open, where it does.
    optional: text encoders that a model can do without, and what diffusers calls the parts of each.
    finer_first: read in float16 before it becomes bfloat16, so that its hash can be told.
    """

    architecture: ClassVar[str]
    title: ClassVar[str]
    guidance_scale: float
    cues: ClassVar[Cues | None] = None
    pipelines: ClassVar[tuple[str, ...]]
    marks: ClassVar[tuple[str, ...]]
    file_parts: ClassVar[tuple[FilePart, ...]]
    network_marks: ClassVar[tuple[str, ...]] = ()
    load_options: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    file_needs_config: ClassVar[str] = ""
    optional: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType({})

    finer_first: ClassVar[bool] = True
    distilled: bool = False  # guidance is in the weights: no unconditional branch (`flow.declare_distilled`)

    vae: Any
    scheduler: Any
    side: int | None = None  # of the latents; None is what the model was made for
    other_scheduler: str | None = None  # the one that took the place of the model's own
    hash: str = ""  # of the weights as they were before they became bfloat16

    # ---- what a family says

    @classmethod
    @abstractmethod
    def from_pipeline(cls, pipeline: Any) -> DiffusionModel:
        """From a diffusers pipeline of one of `pipelines`."""

    @classmethod
    def fits(cls, pipeline: Any) -> bool:
        """Whether a pipeline of one of `pipelines` is of this family, where two families share a class."""
        return True

    @classmethod
    def file_options(cls, keys: frozenset[str]) -> dict[str, Any]:
        """Options of diffusers' loader for a single-file checkpoint with these keys."""
        return {}

    @classmethod
    def finish_file(cls, pipeline: Any, header: Header) -> None:
        """Set what diffusers does not read off a single-file checkpoint.

        Raises FairAdapterError for marks that contradict each other or the family.
        """
        pipeline.scheduler = with_marks(pipeline.scheduler, header)

    @classmethod
    def from_network_file(
        cls, path: Path, keys: frozenset[str], config: str, given: Mapping[str, Any], **options: Any
    ) -> Any:
        """The pipeline of a file that has `network_marks`.

        config: folder or hub id that what the file lacks comes from.  given: parts from elsewhere; None where
        they are not wanted.
        options: of diffusers' loaders.
        """
        raise NotImplementedError

    @classmethod
    def read_in(cls, dtype: torch.dtype) -> torch.dtype:
        """What weights of this type are read in: which model it is shows in finer ones alone."""
        return torch.float16 if cls.finer_first and dtype == torch.bfloat16 else dtype

    @property
    @abstractmethod
    def names(self) -> FamilyNames:
        """What other programs call it, for the files that they read."""

    @property
    @abstractmethod
    def network(self) -> Any:
        """U-Net or transformer."""

    @property
    @abstractmethod
    def encoders(self) -> tuple[TextEncoder, ...]: ...

    @abstractmethod
    def network_layers(self) -> dict[str, nn.Linear]:
        """Layers of the network that a LoRA goes on, by the name that hosts know them by."""

    @abstractmethod
    def encode(
        self, prompts: Sequence[str], soft: Soft | None = None, length: int | None = None
    ) -> Conditioning:
        """The conditioning of N prompts, soft tokens before their words.

        length: positions, where it is not the encoder's own (see `text_length`).
        """

    @property
    @abstractmethod
    def ends(self) -> tuple[Tensor, Tensor]:
        """Weights of the network's first and last layer, for `weights_hash`."""

    @abstractmethod
    def widths(self) -> dict[str, int]:
        """Of the parts that an adapter has to fit."""

    # ---- what follows from it

    @classmethod
    def leave_out(cls, encoders: Sequence[str]) -> dict[str, None]:
        """Options of diffusers' loaders for a model without these text encoders.

        Raises FairAdapterError for one that the family needs or does not have.
        """
        for name in encoders:
            if name not in cls.optional:
                raise FairAdapterError(
                    f"model.without: expected {' or '.join(cls.optional) or 'nothing'} for {cls.title}, "
                    f"found {name}; take it out of the list"
                )
        return dict.fromkeys(part for name in encoders for part in cls.optional[name])

    def describe(self, name: str) -> BaseModel:
        """What an adapter file says about the model that it was trained on."""
        hashed = self.hash or weights_hash(*self.ends)
        return BaseModel(name, self.architecture, self.widths(), hashed, self.names)

    @property
    def device(self) -> torch.device:
        return self.network.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the network's weights."""
        return self.network.dtype

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        side = self.side or self.network.config["sample_size"]
        return self.network.config["out_channels"], side, side

    @property
    def vae_channels(self) -> int:
        """Of the latents that the VAE decodes."""
        return int(self.vae.config["latent_channels"])

    def network_inputs(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) with what an inpainting U-Net is told besides, (B, 9, h, w).

        It is told that nothing of the picture is known, as A1111 (`txt2img_image_conditioning`) and ComfyUI
        do for a text alone: a mask of ones and the latents of a grey picture. Others take the latents alone.
        """
        if self.network.config["in_channels"] == latents.shape[1]:
            return latents
        blank = self._blank(latents.shape[-2], latents.shape[-1]).to(latents).expand(len(latents), -1, -1, -1)
        return torch.cat([latents, torch.ones_like(latents[:, :1]), blank], dim=1)

    @torch.no_grad()
    def _blank(self, *size: int) -> Tensor:
        """(1, C, h, w), made once for each size."""
        made = vars(self).setdefault("_blanks", {})
        if size not in made:
            grey = torch.zeros(1, 3, *(LATENT_FACTOR * n for n in size), device=self.device)
            made[size] = (
                self.vae.encode(grey.to(self.vae.dtype)).latent_dist.mode()
                * self.vae.config["scaling_factor"]
            )
        return made[size]

    def sampler(self, steps: int) -> LinearSampler:
        return linear_sampler(self.scheduler, steps)

    def text_layers(self) -> dict[str, nn.Linear]:
        """Layers of the text encoders that a LoRA goes on, by kohya name."""
        layers: dict[str, nn.Linear] = {}
        for encoder in self.encoders:
            if encoder.lora is not None:
                layers |= text_layers(encoder.module, encoder.lora)
        return layers

    def text_length(self, prompts: Sequence[str], tokens: int = 0) -> int | None:
        """Positions that these prompts take after soft tokens; None is the encoders' own number."""
        return None

    def common_length(
        self, prompts: Sequence[str], negative: str, tokens: int = 0, negative_tokens: int = 0
    ) -> int | None:
        """Positions that prompts and what they are guided away from have in common; neither is cut for it."""
        lengths = self.text_length(prompts, tokens), self.text_length([negative], negative_tokens)
        return max((length for length in lengths if length is not None), default=None)

    def encode_negative(
        self, prompts: Sequence[str], soft: Soft | None = None, length: int | None = None
    ) -> Conditioning:
        """As `encode`, of prompts that pictures are guided away from."""
        return self.encode(prompts, soft, length)

    def zero_empty_negative(self) -> None:
        """From now on put zeros in the place of an empty negative prompt.

        Raises FairAdapterError for a family whose hosts encode it.
        """
        raise FairAdapterError(
            f"model.empty_negative: expected encoded for {self.title}, as the hosts of its adapters have it, "
            "found zeros; set model.empty_negative=encoded"
        )

    def guidance(self, prompts: Sequence[str], scale: float, negative: str = "") -> Guidance:
        if self.distilled:
            return unguided(self.encode(prompts), scale, self.title)
        length = self.common_length(prompts, negative)
        unconditional = self.encode_negative([negative], None, length)
        return Guidance(self.encode(prompts, None, length), unconditional, scale)

    def decode(self, latents: Tensor) -> Tensor:
        config = self.vae.config
        scaled = (latents / config["scaling_factor"] + (config.get("shift_factor") or 0.0)).to(self.vae.dtype)
        side = LATENT_FACTOR * latents.shape[-1]
        pieces = [scaled] if torch.is_grad_enabled() else scaled.split(max(1, DECODED // side**2))
        return torch.cat([self.vae.decode(piece).sample.float() for piece in pieces]) / 2 + 0.5

    def parts(self) -> dict[str, Any]:
        """All networks by name."""
        encoders = {
            "text" if i == 0 else f"text_{i + 1}": encoder.module for i, encoder in enumerate(self.encoders)
        }
        return {**encoders, "unet": self.network, "vae": self.vae}

    def facts(self) -> dict[str, Any]:
        """Unusual settings, besides weights and scheduler, that pictures depend on."""
        facts = {"side": self.side, "scheduler": self.other_scheduler}
        return {name: value for name, value in facts.items() if value is not None}

    def to(self, device: torch.device | str) -> Any:
        """Moves the networks, frozen and in evaluation mode, into the memory layout that suits the device."""
        for part in self.parts().values():
            part.to(device).requires_grad_(False).eval()
        kind = torch.device(device).type
        if kind == "cuda":
            for part in (self.network, self.vae):
                if all(weight.ndim < 5 for weight in part.parameters()):  # no VAE for videos
                    part.to(memory_format=torch.channels_last)
        if kind == "cpu" and self.dtype != torch.float32 and isinstance(self.network, UNet2DConditionModel):
            # with 16 bits the CPU's flash kernel takes half as long again to go back
            self.network.set_attn_processor(AttnProcessor())
        if _channels_first not in self.vae.decoder.mid_block._forward_hooks.values():
            self.vae.decoder.mid_block.register_forward_hook(_channels_first)
        return self

    def resize(self, pixels: int) -> None:
        """Draw pictures of another size. Raises FairAdapterError for one that has no whole latents."""
        check_size(pixels)
        self.side = pixels // LATENT_FACTOR

    def checkpoint(self, decoder: bool, network: bool) -> None:
        """Trade time for memory in the backward pass: keep the inputs of the network's blocks and of the
        decoder's layers only. A block of the decoder at 1024 px is too much for a GPU of 16 GB."""
        if network:
            self.network.enable_gradient_checkpointing(RECOMPUTED)
        else:
            self.network.disable_gradient_checkpointing()
        self.checkpoint_decoder(decoder)

    def checkpoint_decoder(self, wanted: bool) -> None:
        """Of the VAE, layer by layer."""
        recompute_decoder(self.vae.decoder, wanted)


def _channels_first(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Attention leaves channels last behind it, in which a CPU's group norms go back 30 times as slowly."""
    return output.contiguous() if output.device.type == "cpu" and torch.is_grad_enabled() else output
