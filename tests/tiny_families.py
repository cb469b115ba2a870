"""A model of every family with random weights, of its own config classes, small enough for a test.

64 px pictures; two levels of width 32; text encoders of two layers.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from fair_adapter.tests.tiny_diffusion import tokenizer
from fair_adapter.tests.tiny_diffusion import unet as sd1_unet
from fair_adapter.trainer.families.base import DiffusionModel
from fair_adapter.trainer.families.registry import families
from fair_adapter.trainer.portrait.models import build_scheduler

WIDTH = 16
LADDER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
NAMES = ("sd1", "sd2", "sd2 v", "sdxl", "sd3")


def clip(kind: type = CLIPTextModel, width: int = WIDTH, act: str = "gelu") -> Any:
    return kind(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=77,
            projection_dim=width,
            hidden_act=act,
            bos_token_id=49406,
            eos_token_id=49407,
            pad_token_id=49407,
        )
    )


def unet(context: int, **settings: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(32, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=context,
        attention_head_dim=(2, 2),
        use_linear_projection=True,
        **settings,
    )


def vae(channels: int = 4, **settings: Any) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32,) * 4,
        layers_per_block=1,
        latent_channels=channels,
        sample_size=64,
        **settings,
    )


def transformer() -> SD3Transformer2DModel:
    """SD 3.5's: query and key norms, and one block of two with a second attention."""
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=4 * WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=3 * WIDTH,
        out_channels=16,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )


@functools.cache
def t5_tokenizer() -> T5Tokenizer:
    """Letters and a few words; </s> at the end, as the real one has it."""
    words = ["▁photo", "▁face", "▁person", "▁doctor", "▁nurse", "▁of", "▁the", "▁a", ",", "▁"]
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    scores = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    scores += [(piece, -2.0 - 0.01 * i) for i, piece in enumerate([*words, *letters])]
    return T5Tokenizer(vocab=scores, extra_ids=0, model_max_length=512)


def t5() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=len(t5_tokenizer()),
            d_model=4 * WIDTH,
            d_kv=8,
            d_ff=32,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    )


def pipeline(name: str, t5xxl: bool = True) -> Any:
    """The diffusers pipeline of a family, always of the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        builders = {"sdxl": _sdxl, "sd3": functools.partial(_sd3, t5xxl)}
        made = builders.get(name, functools.partial(_sd, name))()
    for part in made.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()  # T5 has dropout
    return made


def _sd(name: str) -> StableDiffusionPipeline:
    first = name == "sd1"
    scheduler = build_scheduler()
    if name == "sd2 v":
        scheduler = DPMSolverMultistepScheduler(**LADDER, prediction_type="v_prediction", steps_offset=1)
    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip(act="quick_gelu" if first else "gelu"),
        tokenizer=tokenizer(),
        unet=sd1_unet(WIDTH) if first else unet(WIDTH),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl() -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline(
        vae=vae(force_upcast=True),
        text_encoder=clip(act="quick_gelu"),
        text_encoder_2=clip(CLIPTextModelWithProjection, 2 * WIDTH),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        unet=unet(
            3 * WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=6 * 4 + 2 * WIDTH,
        ),
        scheduler=EulerDiscreteScheduler(**LADDER, timestep_spacing="leading", steps_offset=1),
        add_watermarker=False,
    )


def _sd3(t5xxl: bool = True) -> StableDiffusion3Pipeline:
    return StableDiffusion3Pipeline(
        transformer=transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(16, shift_factor=0.06, scaling_factor=1.5),
        text_encoder=clip(CLIPTextModelWithProjection, act="quick_gelu"),
        tokenizer=tokenizer(),
        text_encoder_2=clip(CLIPTextModelWithProjection, 2 * WIDTH),
        tokenizer_2=tokenizer(),
        text_encoder_3=t5() if t5xxl else None,
        tokenizer_3=t5_tokenizer() if t5xxl else None,
    )


def tiny(name: str, dtype: torch.dtype = torch.float32, t5xxl: bool = True) -> DiffusionModel:
    """The model of a family, of its own for every call."""
    made = pipeline(name, t5xxl)
    kinds = [k for k in families() if type(made).__name__ in k.pipelines and k.fits(made)]
    model = kinds[-1].from_pipeline(made)
    for part in model.parts().values():
        torch.nn.Module.to(part, dtype)  # diffusers' own would warn about precision
    return model.to("cpu")
