"""Z-Image and Krea 2 with random weights, of their own configuration classes, small enough for a test.

Their tokenizer knows a few words, one token each, and Qwen3's chat template for one message, so that what
stands before and after a prompt takes as many tokens as with the real one.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    Krea2Pipeline,
    Krea2Transformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model, Qwen3VLConfig, Qwen3VLModel

from fair_adapter.tests.tiny_families import vae
from fair_adapter.trainer.families.base import DiffusionModel
from fair_adapter.trainer.families.krea2 import BEGINNING
from fair_adapter.trainer.families.registry import families

WIDTH = 16
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
TEXT = (
    "user system assistant Describe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background: a photo of the face of a doctor nurse person "
    "smiling portrait"
)
PIECES = Regex(r"\n| ?\w+|[^\w\s]")


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Position 0 of its vocabulary is a word ("!"), as in Qwen's."""
    words = [word.strip(",:") for word in TEXT.split()]
    known = ["!", "?", "\n", ",", ":", *words, *(f" {word}" for word in words)]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(known))}
    core = Tokenizer(WordLevel(vocabulary, unk_token="?"))
    core.pre_tokenizer = Split(PIECES, "isolated")
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[2],
        unk_token="?",
        model_max_length=4096,
    )
    made.chat_template = TEMPLATE
    return made


def qwen_settings(layers: int, width: int) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer()),
        "hidden_size": width,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "initializer_range": 0.5,
    }


def _z_image(distilled: bool, width: int) -> ZImagePipeline:
    transformer = ZImageTransformer2DModel(
        dim=WIDTH, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=WIDTH,
        axes_dims=[4, 2, 2], axes_lens=[256, 32, 32],
    )  # fmt: skip
    for part in transformer.parameters():  # so that the prompt shows in a picture
        part.data.normal_(0, 0.3)
    return ZImagePipeline(
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae(16, shift_factor=0.1159, scaling_factor=0.3611),
        Qwen3Model(Qwen3Config(**qwen_settings(3, width))),
        tokenizer(),
        transformer,
    )


def _krea2(distilled: bool, width: int) -> Krea2Pipeline:
    transformer = Krea2Transformer2DModel(
        in_channels=64, num_layers=2, attention_head_dim=8, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=2 * WIDTH, timestep_embed_dim=8, text_hidden_dim=WIDTH, num_text_layers=2,
        text_num_attention_heads=2, text_num_key_value_heads=2, text_intermediate_size=2 * WIDTH,
        num_layerwise_text_blocks=1, num_refiner_text_blocks=1, axes_dims_rope=(4, 2, 2),
    )  # fmt: skip
    for part in transformer.parameters():
        part.data.normal_(0, 0.3)
    vision = {
        "depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1, "out_hidden_size": width,
        "deepstack_visual_indexes": [], "num_position_embeddings": 4,
    }  # fmt: skip
    text = {
        **qwen_settings(3, width),
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]},
    }
    encoder = Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=vision))
    return Krea2Pipeline(
        FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, max_image_seq_len=6400
        ),
        AutoencoderKLQwenImage(base_dim=8, z_dim=16, num_res_blocks=1),
        encoder,
        tokenizer(),
        transformer,
        text_encoder_select_layers=(1, 2),
        is_distilled=distilled,
    )


BUILDERS = {"z-image": _z_image, "krea2": _krea2}
LANGUAGE_NAMES = tuple(BUILDERS)


def pipeline(name: str, distilled: bool = False, encoder_width: int = WIDTH) -> Any:
    """The diffusers pipeline of a family, always of the same weights.

    distilled: where the pipeline itself says so (Krea 2).  encoder_width: other than the transformer expects.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = BUILDERS[name](distilled, encoder_width)
    for part in made.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    made.set_progress_bar_config(disable=True)
    return made


def tiny(name: str, dtype: torch.dtype = torch.float32) -> DiffusionModel:
    """The model of a family, of its own for every call, for pictures of 64 px."""
    made = pipeline(name)
    (kind,) = (k for k in families() if type(made).__name__ in k.pipelines)
    model = kind.from_pipeline(made)
    for part in model.parts().values():
        torch.nn.Module.to(part, dtype)
    model.resize(64)
    return model.to("cpu")


def starting_latents(stock: Any, noise: Tensor) -> Tensor:
    """Noise (N, C, h, w) as the pipeline takes it."""
    if hasattr(stock, "_pack_latents"):
        return stock._pack_latents(noise, *noise.shape)
    return noise


def spliced_by_hand(model: Any, prompt: str, rows: Tensor) -> Tensor:
    """The encoder's output (1, L, ...) for embeddings with soft tokens (n, d) in the user's turn."""
    return BY_HAND[model.architecture](model, prompt, rows)


@torch.no_grad()
def _z_image_by_hand(model: Any, prompt: str, rows: Tensor) -> Tensor:
    words = tokenizer()
    before = words("<|im_start|>user\n").input_ids
    after = words(f"{prompt}<|im_end|>\n<|im_start|>assistant\n").input_ids
    table = model.text_encoder.embed_tokens.weight
    embedded = torch.cat([table[before], rows, table[after]])[None]
    return model.text_encoder(inputs_embeds=embedded, output_hidden_states=True).hidden_states[-2]


@torch.no_grad()
def _krea2_by_hand(model: Any, prompt: str, rows: Tensor) -> Tensor:
    """Without padding, which stands between prompt and template's end: what stands before it is the same."""
    words = tokenizer()
    before, after = words(BEGINNING).input_ids, words(prompt).input_ids
    table = model.text_encoder.get_input_embeddings().weight
    embedded = torch.cat([table[before], rows, table[after]])[None]
    states = model.language_model(inputs_embeds=embedded, output_hidden_states=True).hidden_states
    assert len(before) == 34
    return torch.stack([states[tap][:, 34:] for tap in model.taps], dim=2)


BY_HAND = {"z-image": _z_image_by_hand, "krea2": _krea2_by_hand}
