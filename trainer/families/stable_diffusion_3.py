"""Stable Diffusion 3 and 3.5: flow matching, a transformer over image and text, two CLIP encoders and T5.

Text is what ComfyUI makes of it, where SD 3 is used most: the CLIPs' last but one hidden states side by side,
padded to T5's width, then T5's 77 positions, nothing masked. diffusers does the same where it is told
`max_sequence_length=77` (its own number and Forge's is 256). ComfyUI gives T5 more positions for a prompt of
more than 77 tokens, which is cut here. A model without T5 (`text_encoder_3` null, `model.without`) has the
CLIPs' 77 positions alone, as in ComfyUI; A1111 puts 77 positions of zeros after them, diffusers 256.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
# (diffusers annotates these wrongly)

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel

from ...shared.adapter_info import FamilyNames
from ...shared.errors import FairAdapterError
from ...shared.lora import transformer_layers
from ...shared.sampling import Conditioning
from ...shared.schedulers import LinearSampler, linear_sampler
from ...shared.soft_prompt import prompt_ids, spliced
from .base import DiffusionModel, Soft, TextEncoder
from .file_parts import NETWORK, VAE_PART, FilePart, always, clip_part
from .flow import resolution_shift
from .header import Header
from .layout import mmdit_key, same_key
from .marks import marked
from .stable_diffusion_xl import clip_output

T5_LENGTH = 77  # positions
ATTENTION = re.compile(r"transformer_blocks\.\d+\.attn2?\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)$")


@dataclass
class StableDiffusion3(DiffusionModel):
    """Stable Diffusion 3, 3.5 medium and large."""

    architecture = "sd3"
    title = "Stable Diffusion 3"
    guidance_scale = 4.5
    pipelines = ("StableDiffusion3Pipeline",)
    marks = ("model.diffusion_model.joint_blocks.", "text_encoders.clip_l.")
    file_parts = (
        clip_part(
            "text_encoder",
            CLIPTextModelWithProjection,
            "text_encoders.clip_l.transformer.",
            ("text_projection.weight",),  # the identity
        ),
        clip_part("text_encoder_2", CLIPTextModelWithProjection, "text_encoders.clip_g.transformer."),
        FilePart(
            "text_encoder_3",
            T5EncoderModel,
            "text_encoders.t5xxl.transformer.",
            always(same_key),
            tied=("shared.weight", "encoder.embed_tokens.weight"),
        ),
        FilePart(
            "transformer",
            SD3Transformer2DModel,
            NETWORK,
            always(mmdit_key),
            small=(("pos_embed_max_size", 2),),
            unsized=("pos_embed",),
        ),
        VAE_PART,
    )
    network_marks = ("model.diffusion_model.joint_blocks.",)
    optional = MappingProxyType({"t5xxl": ("text_encoder_3", "tokenizer_3")})

    tokenizer: CLIPTokenizer
    tokenizer_2: CLIPTokenizer
    tokenizer_3: Any
    text_encoder: CLIPTextModelWithProjection
    text_encoder_2: CLIPTextModelWithProjection
    text_encoder_3: Any
    transformer: SD3Transformer2DModel
    vae: AutoencoderKL
    scheduler: Any

    @classmethod
    def from_pipeline(cls, pipeline: Any) -> StableDiffusion3:
        return cls(
            pipeline.tokenizer,
            pipeline.tokenizer_2,
            pipeline.tokenizer_3,
            pipeline.text_encoder,
            pipeline.text_encoder_2,
            pipeline.text_encoder_3,
            pipeline.transformer,
            pipeline.vae,
            pipeline.scheduler,
        )

    @classmethod
    def file_options(cls, keys: frozenset[str]) -> dict[str, Any]:
        """Files without T5 are usual."""
        if any(key.startswith("text_encoders.t5xxl.") for key in keys):
            return {}
        return {**cls.leave_out(["t5xxl"])}

    @classmethod
    def finish_file(cls, pipeline: Any, header: Header) -> None:
        """T5 looks tokens up in a table that files have under the name of the table it is tied to."""
        found = marked(header)
        if found:
            raise FairAdapterError(
                f"{header.path}: found a mark of {' and '.join(found)}, expected a {cls.title} checkpoint, "
                "whose network predicts the velocity of a flow; choose another file"
            )
        if pipeline.text_encoder_3 is not None:
            pipeline.text_encoder_3.tie_weights()

    @classmethod
    def from_network_file(
        cls, path: Path, keys: frozenset[str], config: str, given: Mapping[str, Any], **options: Any
    ) -> Any:
        """The transformer, and the VAE if it is there: how Stability AI publishes SD 3 and 3.5."""
        kinds: dict[str, Any] = {"transformer": SD3Transformer2DModel}
        if "vae" not in given and any(key.startswith("first_stage_model.") for key in keys):
            kinds["vae"] = AutoencoderKL
        own = {
            name: kind.from_single_file(str(path), config=config, subfolder=name, **options)
            for name, kind in kinds.items()
        }
        return StableDiffusion3Pipeline.from_pretrained(config, **own, **given, **options)

    def to(self, device: torch.device | str) -> StableDiffusion3:
        """As for every model; the VAE in float32 where float16 would overflow in it."""
        super().to(device)
        if self.vae.dtype == torch.float16 and self.vae.config["force_upcast"]:
            self.vae.to(torch.float32)
        return self

    @property
    def names(self) -> FamilyNames:
        return FamilyNames("stable-diffusion-3", "sd3", peft=True)

    @property
    def network(self) -> SD3Transformer2DModel:
        return self.transformer

    @property
    def encoders(self) -> tuple[TextEncoder, ...]:
        clips = (
            TextEncoder("clip_l", self.text_encoder, self.tokenizer, "lora_te1"),
            TextEncoder("clip_g", self.text_encoder_2, self.tokenizer_2, "lora_te2"),
        )
        if self.text_encoder_3 is None:
            return clips
        stack = self.text_encoder_3.encoder  # has the token embedding that is looked up
        return (*clips, TextEncoder("t5xxl", stack, self.tokenizer_3, None, 0, T5_LENGTH))

    def network_layers(self) -> dict[str, nn.Linear]:
        return transformer_layers(self.transformer, ATTENTION)

    def sampler(self, steps: int) -> LinearSampler:
        """Flow-matching Euler; where its shift follows the picture's size, at this size."""
        config = self.scheduler.config
        if not config.get("use_dynamic_shifting"):
            return linear_sampler(self.scheduler, steps)
        tokens = (self.latent_shape[1] // self.transformer.config["patch_size"]) ** 2
        return linear_sampler(self.scheduler, steps, mu=resolution_shift(config, tokens))

    def encode(
        self, prompts: Sequence[str], soft: Soft | None = None, length: int | None = None
    ) -> Conditioning:
        """{"text": (N, 77 + 77, 4096), (N, 77, 4096) without T5, "pooled": (N, 768 + 1280)}."""
        clips, rest = self.encoders[:2], self.encoders[2:]
        outputs = [clip_output(encoder, prompts, soft, self.device) for encoder in clips]
        hidden = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        width = self.transformer.config["joint_attention_dim"]
        text = [functional.pad(hidden, (0, width - hidden.shape[-1]))]
        text += [self._encode_t5(encoder, prompts, soft).to(hidden) for encoder in rest]
        pooled = torch.cat([output[0] for output in outputs], dim=-1)
        return {"text": torch.cat(text, dim=1), "pooled": pooled}

    def _encode_t5(self, encoder: TextEncoder, prompts: Sequence[str], soft: Soft | None) -> Tensor:
        """(N, 77, 4096)."""
        rows = None if soft is None else soft.get(encoder.name)
        count = 0 if rows is None else len(rows)
        ids = prompt_ids(encoder.tokenizer, prompts, count, encoder.length, encoder.first)
        with spliced(encoder.module, rows, encoder.first):
            return encoder.module(ids.to(self.device))[0]

    def denoise(self, inputs: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The transformer's velocity (B, 16, h, w)."""
        dtype = self.transformer.dtype
        return self.transformer(
            hidden_states=inputs.to(dtype),
            timestep=timesteps,
            encoder_hidden_states=conditioning["text"].to(dtype),
            pooled_projections=conditioning["pooled"].to(dtype),
        ).sample

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        return self.transformer.pos_embed.proj.weight, self.transformer.proj_out.weight

    def widths(self) -> dict[str, int]:
        return {encoder.name: _width(encoder) for encoder in self.encoders} | {
            "context": int(self.transformer.config["joint_attention_dim"]),
            "transformer": int(self.transformer.inner_dim),
        }


def _width(encoder: TextEncoder) -> int:
    return int(encoder.module.get_input_embeddings().weight.shape[1])
