"""Which family a model is of, and loading it: from a diffusers folder, a single-file checkpoint or a hub id.

A family is any `DiffusionModel` in a module of this folder: adding one is adding a file.
"""

# pyright: reportAttributeAccessIssue=false
# (diffusers loads its names lazily)

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import torch

from ...shared.adapter_info import weights_hash
from ...shared.errors import FairAdapterError, reason
from ...shared.quiet import quiet
from ...shared.schedulers import prediction_of
from ..configuration.settings import unknown
from .base import DiffusionModel
from .eight_bits import put_into_eight_bits
from .header import PICKLES, Header
from .marks import ZERO_SNR, refuse_edm, refuse_edm_pipeline
from .single_file import read, read_vae, refuse_channels, refuse_other_models
from .weights import check_finite, check_folder

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
LINEAR = {"clip_sample": False, "thresholding": False, "stochastic_sampling": False}  # what samplers must be
GGUF = ".gguf"
NO_GGUF = (
    "expected a diffusers folder, hub id or .safetensors checkpoint, found GGUF, whose packed weights no "
    "gradient goes through; give the model in bfloat16, with model.weights=int8 where memory is short"
)
PROBE = 4  # steps by which a scheduler shows what it is


@cache
def families() -> tuple[type[DiffusionModel], ...]:
    """Every family, whatever its file is called; each after the one that it derives from."""
    package = __package__ or ""
    found: dict[type[DiffusionModel], None] = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        members = inspect.getmembers(importlib.import_module(f"{package}.{module.name}"), inspect.isclass)
        found |= {kind: None for _, kind in members if issubclass(kind, DiffusionModel)}
    concrete = [kind for kind in found if not inspect.isabstract(kind)]
    return tuple(sorted(concrete, key=lambda kind: (len(kind.__mro__), kind.__name__)))


def load(
    source: Path | str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    config: str | None = None,
    variant: str | None = None,
    without: Sequence[str] | None = None,
    vae: str | None = None,
    revision: str | None = None,
    weights: str | None = None,
) -> DiffusionModel:
    """A base model, frozen and in evaluation mode.

    source: diffusers folder, .safetensors checkpoint, or hub id (which needs the network once).
    config: diffusers folder or hub id that describes a checkpoint; None is the hub's for its family.
    variant: such as "fp16", for folders that name their files so.
    without: text encoders that are left out, of those that the family can do without.
    vae: .safetensors file, diffusers folder or hub id of a VAE in the place of the model's own, or for a file
    that has none.
    revision: of a hub id.  weights: "int8" puts frozen layers into 8 bits (`eight_bits.put_into_eight_bits`).
    Raises FairAdapterError for what is missing, broken, quantised, of no known family, or unreachable, and
    for numbers that are not finite.
    """
    with quiet():
        model = _load(source, dtype, config, variant, without or (), vae, revision)
        if model.read_in(dtype) != dtype:
            model.hash = weights_hash(*model.ends)
            for part in model.parts().values():
                part.to(dtype)
    if weights == "int8":  # before a GPU is asked to hold all of them
        check_finite(model, source, vae)
        put_into_eight_bits(model)
        return model.to(device)
    model.to(device)
    check_finite(model, source, vae)
    return model


def _load(
    source: Path | str,
    dtype: torch.dtype,
    config: str | None,
    variant: str | None,
    without: Sequence[str],
    vae: str | None,
    revision: str | None,
) -> DiffusionModel:
    path, name = Path(source), Path(source).as_posix()
    if path.is_file() and path.suffix.lower() != GGUF:
        pipeline, kinds = _from_file(path, dtype, config, without, vae)
    elif path.is_dir() and not (path / "model_index.json").is_file():
        raise FairAdapterError(
            f"{path}: expected a diffusers folder with model_index.json, found none; for the embedded model "
            "restore shared/portrait with git"
        )
    elif path.suffix.lower() == GGUF:
        raise FairAdapterError(f"{source}: {NO_GGUF}")
    elif not path.is_dir() and path.suffix.lower() in (".safetensors", *PICKLES):  # hub ids end otherwise
        raise FairAdapterError(f"{source}: expected a checkpoint, found no such file; check model.path")
    elif path.is_dir() or HUB_ID.fullmatch(name):
        place = str(path) if path.is_dir() else name
        pipeline, kinds = _from_folder(place, path.is_dir(), dtype, variant, without, vae, revision)
    else:
        raise FairAdapterError(
            f"{source}: expected a diffusers folder, a .safetensors checkpoint or a hub id such as "
            "stable-diffusion-v1-5/stable-diffusion-v1-5, found none of that name; check model.path"
        )
    fitting = [kind for kind in kinds if kind.fits(pipeline)]
    if not fitting:
        raise FairAdapterError(f"{source}: expected a model of {_titles()}, found none that this reads")
    model = fitting[-1].from_pipeline(pipeline)
    refuse_edm_pipeline(source, model.scheduler, model.vae)
    if isinstance(model.network, diffusers.UNet2DConditionModel):
        refuse_channels(source, model.network.config["in_channels"])
    latents, found = model.vae_channels, model.latent_shape[0]
    if latents != found:
        raise FairAdapterError(
            f"{vae or source}: expected a VAE of {found} latent channels for a {model.title} model, found "
            f"one of {latents}; choose a VAE of that family"
        )
    return model


def _from_folder(
    name: str,
    local: bool,
    dtype: torch.dtype,
    variant: str | None,
    without: Sequence[str],
    vae: str | None,
    revision: str | None,
) -> tuple[Any, list[type[DiffusionModel]]]:
    try:
        index: Any = diffusers.DiffusionPipeline.load_config(name, local_files_only=local, revision=revision)
        pipeline = str(index.get("_class_name"))
        kinds = [kind for kind in families() if pipeline in kind.pipelines]
        if not kinds:
            known = ", ".join(dict.fromkeys(p for kind in families() for p in kind.pipelines))
            raise FairAdapterError(f"{name}: expected a pipeline of {_titles()} ({known}), found {pipeline}")
        dtype = kinds[0].read_in(dtype)
        options: dict[str, Any] = {**kinds[0].load_options, **kinds[0].leave_out(without)}
        if local:
            check_folder(Path(name), kinds[0], variant)
        if vae is not None:
            options["vae"] = read_vae(vae, name, dtype)
        _refuse_missing(name, index, kinds[0], options)
        loaded = getattr(diffusers, pipeline).from_pretrained(
            name, dtype=dtype, variant=variant, local_files_only=local, revision=revision, **options
        )
    except FairAdapterError:
        raise
    except Exception as error:  # diffusers, hub clients and tokenizers raise dozens of kinds
        if local:
            raise FairAdapterError(
                f"{name}: expected a diffusers pipeline of {_titles()}, found {reason(error)}; restore or "
                "download it again"
            ) from error
        raise FairAdapterError(
            f"{name}: expected a model on the hub or in its cache, found {reason(error)}; go online once, "
            "check the name and its licence, or give a diffusers folder"
        ) from error
    return loaded, kinds


def _refuse_missing(name: str, index: Any, kind: type[DiffusionModel], options: Mapping[str, Any]) -> None:
    """Raises FairAdapterError for a network that a model_index.json says is not there, and is needed."""
    spare = {*options, *(part for parts in kind.optional.values() for part in parts)}
    for part in kind.file_parts:
        if part.folder not in spare and (index.get(part.folder) or [None])[0] is None:
            raise FairAdapterError(
                f"{name}: expected a {kind.title} pipeline with its {part.folder}, found none; set "
                "model.path to a whole diffusers folder or hub id"
            )


def _from_file(
    path: Path,
    dtype: torch.dtype,
    config: str | None,
    without: Sequence[str],
    vae: str | None,
) -> tuple[Any, list[type[DiffusionModel]]]:
    header = Header.read(path).in_place()
    refuse_other_models(header)
    refuse_edm(header)
    kind = family_of_keys(header.keys, path)
    dtype = kind.read_in(dtype)
    left_out = kind.leave_out(without)
    if config is None and not header.has(*kind.marks):
        raise FairAdapterError(
            f"{path}: a {kind.title} checkpoint without its text encoders; set model.config to a diffusers "
            "folder or hub id of the model that it was made from, which they are taken from"
        )
    if config is None and kind.file_needs_config:
        raise FairAdapterError(
            f"{path}: a {kind.title} checkpoint does not say {kind.file_needs_config}; set model.config to a "
            "diffusers folder or hub id of the model that it was made from"
        )
    try:
        loaded = read(kind, header, dtype, config, left_out, vae)
        kind.finish_file(loaded, header)
    except FairAdapterError:
        raise
    except Exception as error:  # diffusers, hub clients and tokenizers raise dozens of kinds
        remedy = (
            "what it lacks (configuration, tokenizer, in some files the text encoders) comes from the hub: "
            "go online once, or set model.config to a diffusers folder of its family"
        )
        if config is not None:
            remedy = (
                f"check that model.config ({config}) is a whole diffusers folder, or hub id, of its family, "
                "and that the file is complete"
            )
        raise FairAdapterError(
            f"{path}: expected a {kind.title} checkpoint that loads, found {reason(error)}; {remedy}"
        ) from error
    return loaded, [kind]


def family_of_keys(keys: frozenset[str], path: Path) -> type[DiffusionModel]:
    """The family of a single-file checkpoint by its keys. Raises FairAdapterError if it has none."""
    known = [kind for kind in families() if "marks" in vars(kind)]  # others share those of their parent
    whole = [kind for kind in known if _has(keys, kind.marks)]
    found = whole or [kind for kind in known if _has(keys, kind.network_marks)]
    if found:
        return found[-1]
    raise FairAdapterError(
        f"{path}: expected a complete checkpoint of {_titles()}, text encoders included, found none of their "
        "keys; choose a checkpoint, not a LoRA or a bare network"
    )


def _has(keys: frozenset[str], marks: tuple[str, ...]) -> bool:
    return bool(marks) and all(any(key.startswith(mark) for key in keys) for mark in marks)


def with_scheduler(model: DiffusionModel, name: str) -> None:
    """Replace the scheduler by another of diffusers, on the same noise schedule, without noise and clipping.

    The model's own need not be one that can be used. Raises FairAdapterError, and leaves the model as it is,
    for a name that diffusers does not have, for a scheduler that draws noise or is not linear, and for one
    that would read the network's output wrongly.
    """
    known = sorted(n for n in dir(diffusers) if n.endswith("Scheduler"))
    if name not in known:
        raise unknown(name, known, "scheduler")
    kind: Any = getattr(diffusers, name)
    unset = model.scheduler.config.get("_use_default_values", ())  # defaults of the old one, not the model's
    config = {key: value for key, value in model.scheduler.config.items() if key not in unset}
    config |= LINEAR
    if "algorithm_type" in config:
        config["algorithm_type"] = config["algorithm_type"].removeprefix("sde-")
    prediction = prediction_of(model.scheduler)
    if prediction == "flow":
        config |= {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
        config["flow_shift"] = config.get("shift", 1.0)
    settings = {key: value for key, value in config.items() if key in inspect.signature(kind).parameters}
    if config.get(ZERO_SNR) and ZERO_SNR not in settings:
        raise FairAdapterError(
            f"model.scheduler: expected one that knows {ZERO_SNR}, as this model was trained, found {name}; "
            "choose DDIMScheduler, EulerDiscreteScheduler or DPMSolverMultistepScheduler"
        )
    before = model.scheduler, model.other_scheduler
    try:
        model.scheduler, model.other_scheduler = kind(**settings), name
        found = model.sampler(PROBE).prediction
        if found != prediction:
            raise FairAdapterError(f"{name} would read {prediction} as {found}")
    except Exception as error:  # a scheduler of another kind of model fails in its own way
        model.scheduler, model.other_scheduler = before
        found = str(error) if isinstance(error, FairAdapterError) else reason(error)
        raise FairAdapterError(
            f"model.scheduler: expected one of diffusers' that fits this model: {found}; or leave it out "
            "for the model's own"
        ) from error


def _titles() -> str:
    return ", ".join(dict.fromkeys(kind.title for kind in families()))
