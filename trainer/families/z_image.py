"""Z-Image and Z-Image-Turbo: flow matching, a single-stream transformer, Qwen3-4B for the text.

As in diffusers 0.42.1 (pipelines/z_image/pipeline_z_image.py, models/transformers/transformer_z_image.py):

- the prompt stands in Qwen3's chat template with `enable_thinking=True`, which adds no empty thoughts; it is
  cut at 512 tokens, template included, and the encoder's last but one hidden state is taken without padding;
- `_encode_prompt` writes the template into the list that the caller gave: prompts are copied here;
- the transformer takes a list of texts of different lengths and pads each to a multiple of 32 by a token of
  its own; it is told (1000 - t) / 1000, and its output is negated; latents are float32;
- noise levels go evenly from 1 to 1/steps before the scheduler's shift;
- Turbo (8 steps, no guidance) and base are of the same class and configuration: `model.distilled` tells.

Padding here is to the longest prompt, not to 512, and without a mask: the encoder is causal, and what stands
behind a prompt is left out.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportPrivateImportUsage=false
# (diffusers annotates these wrongly)

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ZImagePipeline, ZImageTransformer2DModel
from torch import Tensor, nn
from transformers import Qwen3Model

from ...shared.adapter_info import FamilyNames
from ...shared.errors import FairAdapterError
from ...shared.lora import transformer_layers
from ...shared.sampling import Conditioning
from ...shared.soft_prompt import masked_prompt_ids, spliced
from .base import Soft
from .file_parts import NETWORK, VAE_PART, FilePart, always
from .flow import own_scale
from .header import BARE
from .language import POSITIONS, LanguageFamily
from .layout import same_key, z_image_key

OPENING = "<|im_start|>user\n"
PATCHES = "2-1"  # of the picture, of the one frame: how the transformer names its first and last layer
STEPS = 1000
ATTENTION = re.compile(r"^layers\.\d+\.attention\.to_([qkv]|out\.0)$")
MARK = NETWORK + BARE


@dataclass
class ZImage(LanguageFamily):
    """Z-Image, and Z-Image-Turbo with `distilled`."""

    architecture = "z-image"
    title = "Z-Image"
    encoder_name = "qwen3_4b"
    guidance_scale = own_scale(5.0)
    pipelines = ("ZImagePipeline",)
    marks = ()  # no complete checkpoints are known
    network_marks = (MARK,)
    file_parts = (
        FilePart("text_encoder", Qwen3Model, "text_encoder.", always(same_key)),
        FilePart("transformer", ZImageTransformer2DModel, NETWORK, always(z_image_key)),
        VAE_PART,
    )

    tokenizer: Any
    text_encoder: Any
    transformer: Any
    vae: AutoencoderKL
    scheduler: Any

    @classmethod
    def from_pipeline(cls, pipeline: Any) -> ZImage:
        parts = (pipeline.tokenizer, pipeline.text_encoder, pipeline.transformer, pipeline.vae)
        model = cls(*parts, pipeline.scheduler)
        model.check_encoder(str(pipeline.name_or_path or model.title))
        model.tokenizer.padding_side = "right"
        return model

    @classmethod
    def from_network_file(
        cls, path: Path, keys: frozenset[str], config: str, given: Mapping[str, Any], **options: Any
    ) -> Any:
        """The transformer alone: how ComfyUI's files of it are."""
        transformer = ZImageTransformer2DModel.from_single_file(
            str(path), config=config, subfolder="transformer", **options
        )
        return ZImagePipeline.from_pretrained(config, transformer=transformer, **given, **options)

    @property
    def names(self) -> FamilyNames:
        return FamilyNames("z-image", "zimage", peft=True)

    @property
    def language_model(self) -> Any:
        return self.text_encoder

    @property
    def text_width(self) -> int:
        return int(self.transformer.config["cap_feat_dim"])

    @property
    def inner_width(self) -> int:
        return int(self.transformer.config["dim"])

    @property
    def opening(self) -> str:
        return OPENING

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        side = self.picture_side()
        return int(self.transformer.config["in_channels"]), side, side

    def network_layers(self) -> dict[str, nn.Linear]:
        return transformer_layers(self.transformer, ATTENTION)

    def _texts(self, prompts: Sequence[str]) -> list[str]:
        """Prompts in the chat template. Raises FairAdapterError for a tokenizer with another."""
        options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": True}
        texts = [
            self.tokenizer.apply_chat_template([{"role": "user", "content": prompt}], **options)
            for prompt in prompts
        ]
        if not all(text.startswith(OPENING) for text in texts):
            raise FairAdapterError(
                f"{self.title}: expected a tokenizer whose chat template begins with {OPENING!r}, found "
                f"{texts[0][: len(OPENING)]!r}; put Qwen3's own in its place"
            )
        return texts

    def text_length(self, prompts: Sequence[str], tokens: int = 0) -> int:
        ids = self.tokenizer(self._texts(prompts)).input_ids
        return min(POSITIONS, max(map(len, ids)) + tokens)

    def encode(
        self, prompts: Sequence[str], soft: Soft | None = None, length: int | None = None
    ) -> Conditioning:
        """{"text": (N, L, 2560), "lengths": (N,)}: positions, and how many of them are no padding.

        Lengths stay on the CPU, where the transformer's list of texts is made without waiting for a GPU.
        """
        (encoder,) = self.encoders
        rows = None if soft is None else soft[encoder.name]
        count = 0 if rows is None else len(rows)
        length = self.text_length(prompts, count) if length is None else length
        ids, mask = masked_prompt_ids(self.tokenizer, self._texts(prompts), length, count, encoder.first)
        with spliced(self.text_encoder, rows, encoder.first):
            output = self.text_encoder(
                input_ids=ids.to(self.device), output_hidden_states=True, use_cache=False
            )
        return {"text": output.hidden_states[-2], "lengths": mask.sum(dim=1)}

    def denoise(self, inputs: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The velocity (B, 16, h, w), as a scheduler takes it: noise less image."""
        dtype = self.transformer.dtype
        lengths = conditioning["lengths"].tolist()
        texts = [row[:length] for row, length in zip(conditioning["text"].to(dtype), lengths)]
        pictures = list(inputs.to(dtype).unsqueeze(2).unbind())  # of one frame each
        output = self.transformer(pictures, (STEPS - timesteps) / STEPS, texts, return_dict=False)[0]
        return -torch.stack(output).squeeze(2)

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        first, last = self.transformer.all_x_embedder[PATCHES], self.transformer.all_final_layer[PATCHES]
        return first.weight, last.linear.weight
