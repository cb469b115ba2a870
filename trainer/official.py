"""Import of the official release (github.com/sail-sg/finetune-fair-diffusion): its .pth files as one adapter.

    text_encoder_lora[_EMA].pth   144 tensors: 12 layers x (q, k, v, out, fc1, fc2) x (down, up)
    unet_lora[_EMA].pth           256 tensors: 32 attention layers x (to_q, to_k, to_v, to_out) x (down, up)
    prefix_embedding[_EMA].pth    token_embedding.weight (6, 768), whose row 0 is a dummy, and positions

All are for Stable Diffusion 1.5, with rank 50 and no network alpha (scale 1: alpha = rank). Loaders that
ignore what they cannot place drop half of a file, or all of it, in silence: here every tensor finds its place
in its exact shape, or the import fails. The release masks padding and pads to the prompt's length; here, as
in every host, prompts are 77 tokens without a mask.
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..shared.adapter import FairnessAdapter
from ..shared.adapter_info import SD1_NAMES, AdapterInfo, BaseModel
from ..shared.adapter_target import TargetSpace
from ..shared.attributes import AGE, GENDER, RACE4, TargetDistribution
from ..shared.errors import FairAdapterError, one_line, reason
from ..shared.lora import ALPHA, DOWN, UP

SD15 = BaseModel("Stable Diffusion 1.5", "sd1", {"clip_l": 768, "context": 768, "unet": 320}, names=SD1_NAMES)
EXPERIMENTS = {  # the release's folders: what each was trained for
    "exp-1": "gender=50/50",
    "exp-2": "gender=50/50",
    "exp-3": "gender=50/50;race=equal",
    "exp-4": "gender=50/50;race=equal;age=75/25",
    "exp-5": "gender=50/50;race=equal",
    "exp-6": "race=equal",
}
WIDTHS, DEPTH, TEXT, MLP = (320, 640, 1280, 1280), 12, 768, 3072
_FILES = ("text_encoder_lora", "unet_lora", "prefix_embedding")
Shapes = dict[str, tuple[str, int, int]]  # their name of a layer -> kohya name, out, in


def text_layer_shapes() -> Shapes:
    """The 72 layers of CLIP-L."""
    attention = {f"self_attn.{part}_proj": (TEXT, TEXT) for part in ("q", "k", "v", "out")}
    layers = {**attention, "mlp.fc1": (MLP, TEXT), "mlp.fc2": (TEXT, MLP)}
    shapes: Shapes = {}
    for i, (part, (rows, columns)) in itertools.product(range(DEPTH), layers.items()):
        layer = f"text_model.encoder.layers.{i}.{part}"
        shapes[f"{layer}.lora_linear_layer"] = ("lora_te_" + layer.replace(".", "_"), rows, columns)
    return shapes


def unet_layer_shapes() -> Shapes:
    """The 128 projections of SD 1.5's 32 attention layers."""
    shapes: Shapes = {}
    for block, width in _attention_blocks():
        for attention, part in itertools.product(("attn1", "attn2"), ("to_q", "to_k", "to_v", "to_out")):
            context = TEXT if attention == "attn2" and part in ("to_k", "to_v") else width
            layer = f"{block}.transformer_blocks.0.{attention}"
            kohya = f"{layer}.{part}.0" if part == "to_out" else f"{layer}.{part}"
            shapes[f"{layer}.processor.{part}_lora"] = (
                "lora_unet_" + kohya.replace(".", "_"),
                width,
                context,
            )
    return shapes


def _attention_blocks() -> Iterator[tuple[str, int]]:
    for i, j in itertools.product((0, 1, 2), (0, 1)):
        yield f"down_blocks.{i}.attentions.{j}", WIDTHS[i]
    yield "mid_block.attentions.0", WIDTHS[3]
    for i, j in itertools.product((1, 2, 3), (0, 1, 2)):
        yield f"up_blocks.{i}.attentions.{j}", WIDTHS[3 - i]


def read_part(path: Path | str) -> dict[str, Tensor]:
    """One file of the release under the keys of an adapter file: a kohya state dict or `fair.soft.clip_l`.

    Raises FairAdapterError unless it holds exactly what the release's file of that kind holds: all 144 or 256
    tensors of a LoRA or the three of a prefix, finite and in their shapes.
    """
    path = Path(path)
    found = _load(path)
    if "token_embedding.weight" in found:
        return {"fair.soft.clip_l": _prefix(path, found)}
    shapes = unet_layer_shapes() if any("processor" in key for key in found) else text_layer_shapes()
    return _lora(path, found, shapes)


def _lora(path: Path, found: Mapping[str, Tensor], shapes: Shapes) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    count = f"{2 * len(shapes)} tensors"
    for name, (kohya, rows, columns) in shapes.items():
        down, up = found.get(f"{name}.down.weight"), found.get(f"{name}.up.weight")
        if down is None or up is None:
            _refuse(path, f"{count} with '{name}'", f"{len(found)} tensors without it")
        rank = len(down) if down.ndim else 0
        if tuple(down.shape) != (rank, columns) or tuple(up.shape) != (rows, rank) or not rank:
            wanted = f"'{name}' as down (rank, {columns}) and up ({rows}, rank)"
            _refuse(path, wanted, f"{tuple(down.shape)} and {tuple(up.shape)}")
        tensors |= {kohya + DOWN: down, kohya + UP: up, kohya + ALPHA: torch.tensor(float(rank))}
    known = {f"{name}.{part}.weight" for name in shapes for part in ("down", "up")}
    unknown = sorted(set(found) - known)
    if unknown:
        _refuse(path, count, f"{len(found)}, of them unknown '{unknown[0][:100]}'")
    return tensors


def _prefix(path: Path, found: Mapping[str, Tensor]) -> Tensor:
    expected = {"token_embedding.weight", "position_embedding.weight", "position_ids"}
    table = found["token_embedding.weight"]
    if set(found) != expected or table.ndim != 2 or table.shape[1] != TEXT or len(table) < 2:
        sizes = ", ".join(f"{key[:40]} {tuple(value.shape)}" for key, value in sorted(found.items())[:4])
        _refuse(path, f"{', '.join(sorted(expected))} with tokens of width {TEXT}", sizes)
    return table[1:]  # row 0 stands for every ordinary word and is never read


def find_files(folder: Path | str) -> list[Path]:
    """The release's files in an exported checkpoint folder, the moving averages (`_EMA`) where they are."""
    folder = Path(folder)
    found = [
        next((p for p in (folder / f"{stem}_EMA.pth", folder / f"{stem}.pth") if p.is_file()), None)
        for stem in _FILES
    ]
    files = [path for path in found if path is not None]
    if not files:
        _refuse(folder, f"a folder with {', '.join(f'{stem}.pth' for stem in _FILES)}", "none of them")
    return files


def import_official(
    sources: Sequence[Path | str],
    target: TargetDistribution | str = "exp-1",
    name: str = "official",
    neutral: Tensor | None = None,
) -> FairnessAdapter:
    """One adapter of one or several files of the release (or of one folder of them), for its one target.

    target: what it was trained for: a distribution, a text or the name of the experiment ("exp-3").
    neutral: (n, 768), what strength 0 tends to for soft tokens (where training began is not in the release);
        None is the zero embedding.
    Raises FairAdapterError if a file is missing, no part of the release, or not matched to the last tensor.
    """
    paths = [Path(source) for source in sources]
    if len(paths) == 1 and paths[0].is_dir():
        paths = find_files(paths[0])
    tensors: dict[str, Tensor] = {}
    for path in paths:
        part = read_part(path)
        if tensors.keys() & part.keys():
            _refuse(path, "one file for each part", "a second one for the same part")
        tensors |= part
    if neutral is not None and "fair.soft.clip_l" in tensors:
        tensors["fair.soft_neutral.clip_l"] = neutral
    if isinstance(target, str):
        target = TargetDistribution.parse(EXPERIMENTS.get(target, target), (GENDER, RACE4, AGE))
    origin = {"files": [path.name for path in paths], "release": "sail-sg/finetune-fair-diffusion"}
    info = AdapterInfo(
        name,
        SD15,
        TargetSpace(target),
        description="Finetuning Text-to-Image Diffusion Models for Fairness (ICLR 2024), official release",
        author="Shen et al.",
        licence="MIT",
        configuration=origin,
    )
    return FairnessAdapter(info, {key: value.contiguous() for key, value in tensors.items()}, name)


def _load(path: Path) -> Mapping[str, Tensor]:
    """A state dict from a torch pickle, opened with weights_only: it can hold tensors and no code."""
    if not path.is_file():
        _refuse(path, "a .pth file of the official release", "none")
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        OSError,
        EOFError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
    ) as error:
        _refuse(path, "a .pth file of tensors", reason(error))
    if not isinstance(found, Mapping) or not found:
        _refuse(path, "a state dict", type(found).__name__)
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            _refuse(path, "a state dict of tensors", f"{one_line(key, 60)}: {type(value).__name__}")
        if value.layout is not torch.strided:
            _refuse(path, f"a plain tensor '{key[:100]}'", str(value.layout))
        if value.is_floating_point() and not torch.isfinite(value).all():
            _refuse(path, f"finite numbers in '{key[:100]}'", "NaN or infinity")
    return {key: value.detach() for key, value in found.items()}


def _refuse(path: Path, expected: str, found: str) -> NoReturn:
    raise FairAdapterError(
        f"{path}: expected {expected}, found {one_line(found)}; use the release's files as they were "
        "downloaded"
    )
