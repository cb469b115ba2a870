"""What is trained, put on a diffusion model: soft prompt, text-encoder LoRA, network LoRA, or any mix.

    with Adaptation.create(model, space, AdapterConfig(soft_tokens=5, text_lora=True)) as adaptation:
        guidance = adaptation.guidance(prompts, scale, target)   # carries the graph to the parameters
        trajectory = rollout(adaptation.denoise, sampler, noise, guidance)
        accumulate_gradients(adaptation.denoise, trajectory, g, guidance, ...)
    adaptation.to_adapter(info).write(path)

A LoRA acts in both branches of the guidance, as a host's LoRA does; soft tokens stand before the prompt and,
unless asked for, not before the negative one. Detached, the model is the base model again. A model with
several text encoders gets soft tokens in each of them and a LoRA in each CLIP one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from ...shared.adapter import AdapterWeights, FairnessAdapter
from ...shared.adapter_info import AdapterInfo
from ...shared.adapter_target import TargetSpace
from ...shared.attributes import TargetDistribution
from ...shared.errors import FairAdapterError
from ...shared.lora import ALPHA, LoraSet
from ...shared.sampling import Conditioning, Guidance, Outside
from ...shared.schedulers import LinearSampler
from ...shared.soft_prompt import SoftPrompt, initial_tokens
from ...shared.window import WHOLE, Window
from ..configuration.config import NOTHING_TO_TRAIN, AdapterConfig
from .base import DiffusionModel, ImageModel
from .distilled import unguided
from .recompute import RECOMPUTED

COORDINATES = "coordinates"  # of the target, in a conditioning: the gates of the network's LoRA follow them
TEXT_KEYS = ("lora_te", "fair.gate.lora_te")
NETWORK_KEYS = ("lora_unet", "lora_transformer", "fair.gate.lora_unet", "fair.gate.lora_transformer")
Target = TargetDistribution | str | None


class Adaptation(nn.Module):
    """Soft prompt and LoRAs on one model.

    Parameters and state dict are those of the trained parts alone, float32 (float64 on a float64 model).
    """

    def __init__(
        self,
        model: DiffusionModel,
        space: TargetSpace,
        soft: SoftPrompt | None = None,
        text: LoraSet | None = None,
        unet: LoraSet | None = None,
        negative_tokens: bool = False,
    ) -> None:
        super().__init__()
        self.base = model
        self.space = space
        self.soft = soft
        self.text = text
        self.unet = unet
        self.negative_tokens = negative_tokens
        self.to(model.device)
        self._attached = False

    @classmethod
    def create(
        cls, model: DiffusionModel, space: TargetSpace, config: AdapterConfig, seed: int = 0
    ) -> Adaptation:
        """Fresh, changing nothing but by its initial soft tokens; target-conditioned if `space` is.

        seed: of everything drawn here. Raises FairAdapterError where nothing is to be trained.
        """
        if not config.trains:
            raise FairAdapterError(NOTHING_TO_TRAIN)
        generator = torch.Generator().manual_seed(seed)
        soft = None
        if config.soft_tokens:
            begin = (config.soft_tokens, config.initial_words, generator)
            starts = {e.name: initial_tokens(e.module, e.tokenizer, *begin) for e in model.encoders}
            soft = SoftPrompt(starts, space.dimension)
        options = (config.rank, config.alpha, space.dimension, config.gate_std, generator)
        text = LoraSet.create(model.text_layers(), *options) if config.text_lora else None
        unet = LoraSet.create(model.network_layers(), *options) if config.unet_lora else None
        return cls(model, space, soft, text, unet, config.negative_tokens)

    @classmethod
    def from_adapter(
        cls, model: DiffusionModel, adapter: FairnessAdapter, space: TargetSpace | None = None
    ) -> Adaptation:
        """An adapter file as trainable parts, to be measured or trained further.

        space: targets to train it on for, None for its own.
        Raises FairAdapterError for an adapter of another base model, and for a space that its parts have no
        coordinates of.
        """
        adapter.check_base(model.describe("this model"))
        own, space = adapter.targets, space or adapter.targets
        follows = (own.vector, own.default) if own.dimension else None
        if follows != ((space.vector, space.default) if space.dimension else None):
            expected = "no target.vector"
            if own.dimension:
                expected = f"target.vector={own.vector} and target.text={own.default.to_text()}"
            raise FairAdapterError(
                f"{adapter.source}: was trained with {expected}, found another; train on with the same, or "
                "leave adapter.start out"
            )
        return cls._from_tensors(model, space, adapter.tensors, adapter.negative_tokens)

    @classmethod
    def from_weights(
        cls, model: DiffusionModel, weights: AdapterWeights, negative: bool = False
    ) -> Adaptation:
        """What a host does with `FairnessAdapter.at`: plain soft tokens and a plain LoRA, for one target.

        negative: put the soft tokens before the negative prompt too.
        """
        soft = {f"fair.soft.{encoder}": value for encoder, value in weights.soft.items()}
        return cls._from_tensors(model, TargetSpace(weights.target), {**soft, **weights.lora}, negative)

    @classmethod
    def _from_tensors(
        cls, model: DiffusionModel, space: TargetSpace, tensors: Mapping[str, Tensor], negative: bool
    ) -> Adaptation:
        dtype = torch.promote_types(model.dtype, torch.float32)

        def part(*starts: str) -> dict[str, Tensor]:
            return {key: value for key, value in tensors.items() if key.startswith(starts)}

        soft, text, unet = part("fair.soft"), part(*TEXT_KEYS), part(*NETWORK_KEYS)
        return cls(
            model,
            space,
            SoftPrompt.from_tensors(soft, dtype) if soft else None,
            LoraSet.from_tensors(text, dtype) if text else None,
            LoraSet.from_tensors(unet, dtype) if unet else None,
            negative,
        )

    # ---- on and off

    def attach(self) -> None:
        """Put the LoRAs on the model. Raises FairAdapterError if they do not fit."""
        if self.text is not None:
            self.text.attach(self.base.text_layers())
        if self.unet is not None:
            try:
                self.unet.attach(self.base.network_layers())
            except FairAdapterError:
                self.detach()
                raise
        self._attached = True

    def detach(self) -> None:
        """The base model again."""
        for part in (self.text, self.unet):
            if part is not None:
                part.detach()
        self._attached = False

    def __enter__(self) -> Adaptation:
        self.attach()
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()

    @contextmanager
    def disabled(self) -> Iterator[DiffusionModel]:
        """The base model, for the images that the trained ones are compared with."""
        loras = [part for part in (self.text, self.unet) if part is not None]
        try:
            for lora in loras:
                lora.enabled = False
            yield self.base
        finally:
            for lora in loras:
                lora.enabled = True

    # ---- the model as the core calls it

    def encode(
        self,
        prompts: Sequence[str],
        target: Target = None,
        tokens: bool = True,
        length: int | None = None,
        negative: bool = False,
    ) -> Conditioning:
        """The model's conditioning, and {"coordinates": (1, K)} where a U-Net LoRA follows the target.

        target: None is the default target.  tokens: whether the soft tokens stand before the prompts.
        length: as in `DiffusionModel.encode`.  negative: whether they are guided away from.
        """
        if not self._attached:
            raise FairAdapterError("adaptation: not on the model; use `with adaptation:` or attach()")
        coordinates = self.space.resolve(target).coordinates[None].to(self.base.device)
        soft = self.soft(coordinates) if self.soft is not None and tokens else None
        if self.text is not None:
            self.text.coordinates = coordinates
        encode = self.base.encode_negative if negative else self.base.encode
        encoded = encode(prompts, soft, length)
        if self.unet is None or not self.space.dimension:
            return encoded
        return {**encoded, COORDINATES: coordinates}

    def guidance(
        self,
        prompts: Sequence[str],
        scale: float,
        target: Target = None,
        negative: str = "",
        both: bool = True,
    ) -> Guidance:
        """Both guidance branches for N prompts and one target.

        Prompts are encoded anew when the gradient comes back: what it needs of the text encoders would wait
        for it through all of an iteration.
        both: whether the unconditional branch carries a graph to what is trained too.
        """
        count = 0 if self.soft is None else self.soft.length
        length = None
        if not self.base.distilled:
            length = self.base.common_length(prompts, negative, count, count if self.negative_tokens else 0)
        conditional = RECOMPUTED(self.encode, prompts, target, length=length)
        if self.base.distilled:
            return unguided(conditional, scale, self.base.title)
        with torch.set_grad_enabled(both and torch.is_grad_enabled()):
            unconditional = RECOMPUTED(
                self.encode, [negative], target, self.negative_tokens, length, negative=True
            )
        return Guidance(conditional, unconditional, scale)

    def denoise(self, inputs: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's output (B, C, h, w) for scaled latents of that shape, each row at its own target."""
        if self.unet is not None:
            self.unet.coordinates = conditioning.get(COORDINATES)
        return self.base.denoise(inputs, timesteps, conditioning)

    def outside(
        self, prompts: Sequence[str], scale: float, window: Window, negative: str = ""
    ) -> Outside | None:
        """The base model and its guidance for N prompts, for the steps outside of the window; None if there
        are none."""
        if window.whole:
            return None
        with self.disabled() as base, torch.no_grad():
            return Outside(window, self._denoise_base, base.guidance(prompts, scale, negative))

    def _denoise_base(self, inputs: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        with self.disabled() as base:
            return base.denoise(inputs, timesteps, conditioning)

    def adapted(self, target: Target = None, window: Window = WHOLE) -> AdaptedModel:
        """The model with the adapter at a target, in a part of the steps, to generate with like the base
        model."""
        return AdaptedModel(self, target, window)

    # ---- training and files

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by kind, for learning rates of their own: soft, soft_target, lora, gate."""
        groups: dict[str, list[nn.Parameter]] = {"soft": [], "soft_target": [], "lora": [], "gate": []}
        for name, parameter in self.named_parameters():
            kind = "gate" if name.endswith(".gate") else "lora"
            if name.startswith("soft."):
                kind = "soft_target" if name.startswith("soft.slopes.") else "soft"
            groups[kind].append(parameter)
        return {kind: parameters for kind, parameters in groups.items() if parameters}

    def tensors(self) -> dict[str, Tensor]:
        """All parts under their keys in an adapter file, detached copies on the CPU."""
        parts = (self.soft, self.text, self.unet)
        return {key: value for part in parts if part is not None for key, value in part.tensors().items()}

    def to_adapter(self, info: AdapterInfo, dtype: torch.dtype | None = None) -> FairnessAdapter:
        """The adapter file of the parameters as they are (load the moving average first, if it is wanted).

        dtype: of the stored tensors; None keeps the parameters'. `info` must be for this target space.
        """
        if info.targets != self.space:
            raise FairAdapterError(
                f"adapter {info.name!r}: expected metadata for the target space of training, found another"
            )
        info = replace(info, configuration={**info.configuration, "negative_tokens": self.negative_tokens})
        tensors = self.tensors()
        if dtype is not None:
            tensors = {k: v if k.endswith(ALPHA) else v.to(dtype) for k, v in tensors.items()}
        return FairnessAdapter(info, tensors, info.name)


class AdaptedModel(ImageModel):
    """A model whose prompts and network go through an attached adaptation, at a target."""

    def __init__(self, adaptation: Adaptation, target: Target = None, window: Window = WHOLE) -> None:
        self.adaptation, self.target, self.window = adaptation, target, window

    @property
    def device(self) -> torch.device:
        return self.adaptation.base.device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.adaptation.base.latent_shape

    def sampler(self, steps: int) -> LinearSampler:
        return self.adaptation.base.sampler(steps)

    def guidance(self, prompts: Sequence[str], scale: float, negative: str = "") -> Guidance:
        return self.adaptation.guidance(prompts, scale, self.target, negative)

    def outside(self, prompts: Sequence[str], scale: float, negative: str = "") -> Outside | None:
        return self.adaptation.outside(prompts, scale, self.window, negative)

    def denoise(self, inputs: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        return self.adaptation.denoise(inputs, timesteps, conditioning)

    def decode(self, latents: Tensor) -> Tensor:
        return self.adaptation.base.decode(latents)
