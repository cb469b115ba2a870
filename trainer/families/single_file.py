"""Checkpoints in one file: what they must hold is checked in the header, before anything is allocated.

diffusers reads them; what it does not know is done here: the text encoder as NovelAI's first files have it
(without `text_model.` in its names), a VAE that the file lacks or that another takes the place of, U-Nets for
inpainting. Most of what can be wrong with a file diffusers would pass over, or end at with a "meta tensor".
"""

# pyright: reportAttributeAccessIssue=false
# (diffusers loads its names lazily)

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import fetch_diffusers_config
from safetensors import safe_open

from ...shared.errors import FairAdapterError, reason
from .base import DiffusionModel
from .file_parts import FIRST_STAGE, NETWORK, VAE_PART, FilePart, without_text_model
from .header import Header

FIRST = f"{NETWORK}input_blocks.0.0.weight"
SCALED = ("scaled_fp8", "scale_weight", "weight_scale", "scale_input", "input_scale")  # ends of keys
REFINER = "conditioner.embedders.0.model."
INPAINTING = 9  # channels of a U-Net that takes a mask and a picture's latents as well
KNOWN = (None, 4, INPAINTING, 16)
OTHERS = {
    5: "a depth model, which draws over the depth of a given picture",
    7: "an upscaler, which makes a given picture larger",
    8: "an instruction (pix2pix) model, which changes a given picture",
}


def refuse_other_models(header: Header) -> None:
    """Raises FairAdapterError for a checkpoint that draws no picture from a text alone, or not as weights."""
    path = header.path
    if any(key.endswith(SCALED) for key in header.keys):
        raise FairAdapterError(
            f"{path}: expected weights in float16, bfloat16 or float32, found scaled float8, which diffusers "
            "would read without the scales; download the model in float16 or bfloat16"
        )
    if header.has(REFINER):
        raise FairAdapterError(
            f"{path}: expected a text-to-image model, found the refiner of Stable Diffusion XL, which "
            "finishes pictures that another model has begun; choose the base model"
        )
    refuse_channels(path, channels(header))


def channels(header: Header) -> int | None:
    """That a checkpoint's U-Net takes; None without a U-Net."""
    shape = header.shapes.get(FIRST, ())
    return shape[1] if len(shape) == 4 else None


def refuse_channels(source: object, found: int | None) -> None:
    """Raises FairAdapterError for a U-Net that takes a picture beside its latents."""
    if found not in KNOWN:
        what = OTHERS.get(found or 0, "one that takes more than latents")
        raise FairAdapterError(
            f"{source}: expected a text-to-image model, found a U-Net of {found} channels: {what}; choose "
            "the family's base model"
        )


def read(
    kind: type[DiffusionModel],
    header: Header,
    dtype: torch.dtype,
    config: str | None,
    left_out: dict[str, None],
    vae: str | None = None,
) -> Any:
    """The diffusers pipeline of a checkpoint of this family.

    config: diffusers folder or hub id that describes it; None is the hub's.  left_out: parts without which it
    is read.  vae: as `read_vae` takes it, in the place of its own.
    Raises FairAdapterError for what the file should hold and does not.
    """
    if config is None:
        described = {key: torch.empty(shape, device="meta") for key, shape in header.shapes.items()}
        config = str(fetch_diffusers_config(described)["pretrained_model_name_or_path"])
    local = Path(config).is_dir()
    given = {**kind.load_options, **kind.file_options(header.keys), **left_out}
    changes = {"unet": {"in_channels": channels(header)}} if channels(header) else {}
    whole = header.has(*kind.marks)
    parts = [part for part in kind.file_parts if part.folder not in given]
    parts = [part for part in parts if header.has(part.prefix) or (whole and part.folder != "vae")]
    if vae is not None:
        parts = [part for part in parts if part.folder != "vae"]
    for part in parts:
        part.check(header, config, local, **changes.get(part.folder, {}))
    options = {"dtype": dtype, "local_files_only": local}
    other = {} if vae is None else {"vae": read_vae(vae, config, dtype)}
    given |= other
    if not whole:
        return kind.from_network_file(header.path, header.keys, config, {**left_out, **other}, **options)
    if vae is None and not header.has(FIRST_STAGE):
        given["vae"] = _vae_of(config, header, **options)
    for part in parts:
        if without_text_model(header, part):
            given[part.folder] = _renamed_clip(part, header, config, dtype, local)
    if channels(header) == INPAINTING:
        given["unet"] = UNet2DConditionModel.from_single_file(
            str(header.path), config=config, subfolder="unet", **changes["unet"], **options
        )
    pipeline = getattr(diffusers, kind.pipelines[0])
    return pipeline.from_single_file(str(header.path), config=config, **given, **options)


def _vae_of(config: str, header: Header, **options: Any) -> AutoencoderKL:
    try:
        return AutoencoderKL.from_pretrained(config, subfolder="vae", **options)
    except Exception as error:  # diffusers and hub clients raise dozens of kinds
        raise FairAdapterError(
            f"{header.path}: expected a checkpoint with a VAE, found none, and none in {config} "
            f"({reason(error, 120)}); set model.vae to a VAE (.safetensors file, diffusers folder or hub id)"
        ) from error


def _renamed_clip(part: FilePart, header: Header, config: str, dtype: torch.dtype, local: bool) -> Any:
    """A text encoder that lies in the file under shorter names than diffusers knows."""
    settings = part.kind.config_class.from_pretrained(config, subfolder=part.folder, local_files_only=local)
    model = part.kind(settings)  # with the buffers that are in no file
    own = model.state_dict()
    with safe_open(header.path, framework="pt") as file, torch.no_grad():
        for key, name, _ in part.expected(config, local):
            own[key].copy_(file.get_tensor(part.short(name)))
    return model.to(dtype).eval()


def read_vae(source: str, config: str, dtype: torch.dtype) -> AutoencoderKL:
    """A VAE by itself: a .safetensors file, a diffusers folder of it or of a model, or a hub id.

    config: folder or hub id of a model, which describes a file.
    Raises FairAdapterError for what is none.
    """
    path = Path(source)
    try:
        if path.is_file():
            header = Header.read(path)
            header.check_kinds(
                key for key in header.keys if key.startswith(("encoder.", "decoder.", FIRST_STAGE))
            )
            local = Path(config).is_dir()
            if not any("_blocks." in key for key in header.keys):  # diffusers' own names
                part = VAE_PART if header.has(FIRST_STAGE) else dataclasses.replace(VAE_PART, prefix="")
                part.check(header, config, local)
            return AutoencoderKL.from_single_file(
                source, dtype=dtype, local_files_only=local, config=config, subfolder="vae"
            )
        if path.suffix.lower() == ".safetensors":
            raise FairAdapterError(f"model.vae: expected a VAE, found no file {source}")
        places: tuple[dict[str, Any], ...] = ({}, {"subfolder": "vae"})
        for place in places:
            try:
                AutoencoderKL.load_config(source, local_files_only=path.is_dir(), **place)
            except OSError:
                if place:
                    raise
                continue
            return AutoencoderKL.from_pretrained(source, dtype=dtype, local_files_only=path.is_dir(), **place)
        raise AssertionError("one of the two returns or raises")
    except FairAdapterError:
        raise
    except Exception as error:  # diffusers and hub clients raise dozens of kinds
        raise FairAdapterError(
            f"model.vae: expected a VAE as a .safetensors file, a diffusers folder or a hub id, found "
            f"{source} ({reason(error, 160)}); check the name, or go online once"
        ) from error
