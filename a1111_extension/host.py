"""AUTOMATIC1111 and the Forges behind the `Host` protocol. Imports `modules.*`; here is where they differ.

A1111 keeps embeddings in `sd_hijack.model_hijack.embedding_db`, Forge in its text-processing engines; a LoRA
is `networks` of the built-in extension in both. reForge has Forge's patchers and A1111's database, Forge Neo
no engine for Stable Diffusion 2 (read in their repositories, see docs/a1111.md; not run).
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from modules import devices, extra_networks, paths, sd_samplers_common, shared
from PIL import Image
from torch import Tensor

from ..shared.adapter_info import BaseModel, weights_hash
from ..shared.images import to_tensor
from ..shared.live import Cancelled
from ..shared.vae_copy import is_cheap
from .decoder import Decoder, find_vae, full_decoder
from .injection import NativeStore
from .options import APPROXIMATIONS, FULL, OPTIONS, SECTION, FairOptions, read_options
from .service import FairService

ENGINES = ("text_processing_engine", "text_processing_engine_l", "text_processing_engine_g")  # Forge
ENGINE_FILES = {"sd2": "sd20.py"}  # of Forge, below backend/diffusion_engine; Forge Neo has taken it out
SHORT = ("LOW_VRAM", "NO_VRAM")  # Forge's names of a memory that can't hold the model


class WebuiHost:
    """The running webui."""

    def __init__(self) -> None:
        self._base: tuple[tuple[int, str], BaseModel] | None = None
        self._stores: dict[int, NativeStore] = {}

    # ---- the model

    def base_model(self) -> BaseModel:
        """Architecture, widths and weights of the loaded checkpoint, as far as the host shows them."""
        model = shared.sd_model
        file = getattr(getattr(model, "sd_checkpoint_info", None), "filename", "")
        key = (id(model), str(file))  # a checkpoint of the same kind is loaded into the same object
        if self._base is None or self._base[0] != key:
            self._base = (key, describe_model(model))
        return self._base[1]

    def loaded_model(self) -> BaseModel | None:
        """`base_model`, or None without one: Forge has a placeholder until the first generation, and A1111
        would load it there and then, while the page waits."""
        data = getattr(sys.modules.get("modules.sd_models"), "model_data", None)
        model = shared.sd_model if data is None else data.sd_model
        return self.base_model() if getattr(model, "sd_checkpoint_info", None) else None

    def click(self) -> Any:
        """The same for all generations that one click or request asked for; None if the host doesn't say."""
        return getattr(shared.state, "time_start", None)

    # ---- tokens and LoRA

    def native_store(self, keep: int) -> NativeStore:
        if keep not in self._stores:
            options = shared.cmd_opts
            loras = getattr(options, "lora_dir", None) or Path(paths.models_path) / "Lora"
            self._stores = {keep: NativeStore(Path(options.embeddings_dir), Path(loras), keep)}
        return self._stores[keep]

    def take_embedding(self, name: str, path: Path) -> bool:
        """Load an embedding file unless it is known; False if the host lists its embeddings without it."""
        known = _embedding_tables()
        if any(name in table for table in known):
            return True
        database = _a1111_database()
        if database is not None:
            database.load_from_file(str(path), path.name)
        else:
            for engine in _engines():
                engine.embeddings.load_textual_inversion_embeddings()
        known = _embedding_tables()
        return not known or any(name in table for table in known)

    def add_lora(self, p: Any, name: str) -> None:
        """Beside the user's networks, in the base and the hires pass; active from now on."""
        for field in ("extra_network_data", "hr_extra_network_data"):
            data = getattr(p, field, None)
            if data is not None:
                data.setdefault("lora", []).append(extra_networks.ExtraNetworkParams(items=[name, "1.0"]))
        if getattr(p, "disable_extra_networks", False):
            own = {"lora": [extra_networks.ExtraNetworkParams(items=[name, "1.0"])]}
            extra_networks.activate(p, own)
        else:
            extra_networks.activate(p, p.extra_network_data)

    def drop_loras(self, p: Any) -> None:
        extra_networks.activate(p, {})  # `deactivate` leaves the layers as they are

    def matched_layers(self, name: str) -> int | None:
        """A1111's networks carry the layers that they found; Forge's patchers do, by the file's name.

        reForge and Forge Neo have patches by layer, which don't say whose they are: None, not told.
        """
        networks = sys.modules.get("networks")
        loaded = getattr(networks, "loaded_networks", None)
        if loaded is None:
            return None
        mine = [network for network in loaded if getattr(network, "name", None) == name]
        if not mine:
            return 0
        objects = getattr(shared.sd_model, "forge_objects", None)
        if objects is not None:
            patchers: tuple[Any, ...] = (objects.unet, getattr(objects.clip, "patcher", None))
            if not all(hasattr(patcher, "lora_patches") for patcher in patchers):
                return None
            found = [(key[0], layers) for patcher in patchers for key, layers in patcher.lora_patches.items()]
            layers = sum(len(layers) for file, layers in found if Path(file).stem == name)
            by_layer = any(hasattr(patcher, "patches") for patcher in patchers)
            return None if by_layer and not layers else layers
        modules = getattr(mine[0], "modules", None)
        return None if modules is None else len(modules)

    def forget_conditions(self, p: Any) -> None:
        """The host keeps conditionings by prompt; a file that is new may have changed what a prompt means."""
        for name in ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc"):
            cache = getattr(p, name, None)
            if cache:
                cache[0] = None

    # ---- pictures

    def decoder(self) -> Decoder:
        """The decoder of the settings; "automatic" is the model's own VAE where that is small, else NN."""
        chosen, model = webui_options().live_decoder, shared.sd_model
        vae = find_vae(model)
        if chosen == FULL or (chosen not in APPROXIMATIONS and vae is not None and is_cheap(vae)):
            decode = full_decoder(model, decoding_device(model))
        else:
            decode = partial(_approximate, APPROXIMATIONS.get(chosen, APPROXIMATIONS["Approx NN"]))

        def until_cancelled(latents: Tensor) -> Tensor:
            if shared.state.interrupted:  # from now on the host decodes as its own settings say, even in full
                raise Cancelled
            return decode(latents)

        return until_cancelled

    def show_preview(self, image: Image.Image) -> None:
        state = shared.state
        state.assign_current_image(image)
        # Forge Neo counts the steps of its own preview apart, one ahead, and would draw over this one at once
        state.current_image_sampling_step = getattr(state, "preview_step", state.sampling_step)


def _approximate(code: int, latents: Tensor) -> Tensor:
    # The host loads its decoder at the first use and keeps it: weights made in inference mode could not be
    # moved later.
    with torch.inference_mode(False), torch.no_grad():
        images = [sd_samplers_common.single_sample_to_image(z.clone(), code) for z in latents]
    return torch.stack([to_tensor(image) for image in images])


def decoding_device(model: Any) -> torch.device:
    """Where a VAE of our own decodes: beside the model, unless memory is short or it is no CUDA device."""
    options = shared.cmd_opts  # A1111 says it on the model, as --medvram-sdxl concerns some models only
    short = any(getattr(owner, "lowvram", False) for owner in (model, options))
    short = short or bool(getattr(options, "medvram", False))
    forge = getattr(sys.modules.get("backend.memory_management"), "vram_state", None)
    short = short or getattr(forge, "name", "") in SHORT
    device = torch.device(devices.device)
    return device if device.type == "cuda" and not short else torch.device("cpu")


def webui_options() -> FairOptions:
    return read_options(lambda name: shared.opts.data.get(name))


def missing_architectures() -> frozenset[str]:
    """Models of adapters that other webuis run and this one has no engine for."""
    engines = Path(getattr(paths, "script_path", ".")) / "backend" / "diffusion_engine"
    if not engines.is_dir():  # A1111, reForge
        return frozenset()
    return frozenset(kind for kind, file in ENGINE_FILES.items() if not (engines / file).is_file())


def webui_service() -> FairService:
    """The service of this process, with the adapter folder of the settings or models/fair_adapters."""
    chosen = webui_options().folder.strip()
    folder = Path(chosen) if chosen else Path(paths.models_path) / "fair_adapters"
    given = (getattr(shared.cmd_opts, name, None) for name in ("embeddings_dir", "lora_dir"))
    roots = [Path(place).parent for place in given if place]
    named = (getattr(paths, name, None) for name in ("script_path", "data_path", "models_path"))
    roots += [Path(place) for place in named if place]
    return FairService(
        [folder],
        options=webui_options,
        device=lambda: str(devices.device),
        roots=roots,
        missing=missing_architectures(),
    )


def add_settings() -> None:
    """The settings page, from the table in options.py."""
    import gradio as gr

    for option in OPTIONS:
        arguments: dict[str, Any] = {}
        component: dict[str, Any] = {"switch": gr.Checkbox, "slider": gr.Slider}
        component |= {"choice": gr.Dropdown, "text": gr.Textbox}
        if option.kind == "slider":
            low, high, step = option.choices
            arguments = {"minimum": low, "maximum": high, "step": step}
        elif option.kind == "choice":
            arguments = {"choices": list(option.choices)}
        info = shared.OptionInfo(
            option.default, option.label, component[option.kind], arguments or None, section=SECTION
        )
        shared.opts.add_option(f"fair_{option.name}", info.info(option.info))


def describe_model(model: Any) -> BaseModel:
    """What adapters are checked against. Unknown parts stay empty, so that nothing is refused for them."""
    kinds = {"sd3": "is_sd3", "sdxl": "is_sdxl", "sd2": "is_sd2", "sd1": "is_sd1"}
    told = any(hasattr(model, flag) for flag in kinds.values())
    found = next((kind for kind, flag in kinds.items() if getattr(model, flag, False)), None)
    architecture = found or ("another kind" if told else "sd1")
    name = _checkpoint_name(model)
    network = _diffusion_model(model)
    if network is None:
        return BaseModel(name, architecture)
    first, last = network.input_blocks[0][0].weight, network.out[2].weight
    widths = {"unet": int(first.shape[0])}
    for key, weight in network.named_parameters():
        if key.endswith("attn2.to_k.weight"):
            widths["context"] = int(weight.shape[1])
            break
    if architecture == "sd1":
        width = _token_width(model)
        widths |= {"clip_l": width} if width else {}
    return BaseModel(name, architecture, widths, weights_hash(first, last))


def _checkpoint_name(model: Any) -> str:
    info = getattr(model, "sd_checkpoint_info", None)
    return str(getattr(info, "name_for_extra", None) or getattr(info, "title", None) or "the loaded model")


def _diffusion_model(model: Any) -> Any:
    """A1111's `model.diffusion_model`, or Forge's inside its patcher."""
    objects = getattr(model, "forge_objects", None)
    holder = objects.unet.model if objects is not None else getattr(model, "model", None)
    network = getattr(holder, "diffusion_model", None)
    return network if hasattr(network, "input_blocks") and hasattr(network, "out") else None


def _token_width(model: Any) -> int:
    objects = getattr(model, "forge_objects", None)
    holder = objects.clip if objects is not None else model
    encoder = getattr(holder, "cond_stage_model", None)
    for key, weight in encoder.named_parameters() if encoder is not None else ():
        if "token_embedding" in key and key.endswith("weight"):
            return int(weight.shape[1])
    return 0


def _a1111_database() -> Any:
    try:
        from modules import sd_hijack
    except ImportError:
        return None
    return getattr(getattr(sd_hijack, "model_hijack", None), "embedding_db", None)


def _engines() -> list[Any]:
    engines = [getattr(shared.sd_model, name, None) for name in ENGINES]
    return [engine for engine in engines if engine is not None]


def _embedding_tables() -> list[Any]:
    """Names of the embeddings that the host has loaded, one table for each of its databases."""
    database = _a1111_database()
    databases = [database] if database is not None else [engine.embeddings for engine in _engines()]
    tables = [getattr(database, "word_embeddings", None) for database in databases]
    return [table for table in tables if table is not None]
