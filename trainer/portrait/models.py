"""The portrait model's four networks: SD1 topology, small widths."""

# pyright: reportArgumentType=false
# (diffusers annotates block lists as tuples of one)

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ...shared.errors import FairAdapterError

TEXT_WIDTH = 64
LATENT_SIDE = 16
VOCABULARY = 49408
# Those of the shipped model. 96 is no whole multiple of 64, which is why AUTOMATIC1111 can't load it: the
# next one is to have widths that it can, such as 64, 64, 128, 128 or 32, 64, 96, 96.
WIDTHS = (64, 64, 96, 96)


def build_vae() -> AutoencoderKL:
    """128 px RGB <-> 4 x 16 x 16 latents, factor 8; 1.0 M parameters."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=32,
        sample_size=128,
    )


def build_unet(widths: tuple[int, int, int, int] = WIDTHS) -> UNet2DConditionModel:
    """SD1's four levels with attention in the first three; 0.73 GFLOP at 16 x 16 latents.

    A first width of 32 (0.54 GFLOP) was tried: after 200 steps its loss was .195, this one's .174.

    Args:
        widths: of the levels, multiples of 32. Only where they are whole multiples of the first too can the
            model become one file for AUTOMATIC1111 (`single_file`).
    """
    return UNet2DConditionModel(
        sample_size=LATENT_SIDE,
        in_channels=4,
        out_channels=4,
        layers_per_block=2,
        block_out_channels=widths,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=2,  # the number of heads: SD1 gives the count under this name
        norm_num_groups=32,
    )


def build_text_encoder() -> CLIPTextModel:
    """CLIP's text transformer, 4 layers of width 64; ids and positions as in SD1."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=VOCABULARY,
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=77,
            projection_dim=TEXT_WIDTH,
            hidden_act="quick_gelu",
            bos_token_id=49406,
            eos_token_id=49407,
            pad_token_id=49407,
        )
    )


def build_scheduler() -> DPMSolverMultistepScheduler:
    """SD1's noise schedule, DPM-Solver++ 2M."""
    return DPMSolverMultistepScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        steps_offset=1,
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        lower_order_final=True,
    )


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's tokenizer (49,408 entries), its vocabulary and merges rebuilt from the bpe file of open_clip.

    Writes vocab.json and merges.txt into ``folder``.
    """
    spec = find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        raise FairAdapterError(
            "open_clip: expected the package that carries CLIP's bpe file, found none; "
            "pip install open_clip_torch"
        )
    bpe = Path(spec.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"
    with gzip.open(bpe, "rt", encoding="utf-8") as file:
        merges = file.read().split("\n")[1 : VOCABULARY - 512 - 2 + 1]
    letters = _byte_letters()
    words = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        *("".join(m.split()) for m in merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {w: i for i, w in enumerate(words)}
    (folder / "vocab.json").write_text(
        json.dumps(vocabulary, ensure_ascii=False, separators=(",", ":")), encoding="utf-8"
    )
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def _byte_letters() -> Iterable[str]:
    """The printable stand-ins of the 256 bytes in CLIP's order (GPT-2's byte-level alphabet)."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("\u00a1"), ord("\u00ac") + 1),
        *range(ord("\u00ae"), ord("\u00ff") + 1),
    ]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]
