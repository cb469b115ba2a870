"""What the nodes need of ComfyUI: folders, devices, pictures, messages."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import comfy.model_management as management
import folder_paths
import torch
from comfy_execution.utils import get_executing_context
from PIL import Image
from server import PromptServer
from torch import Tensor

from ..shared.errors import FairAdapterError
from ..shared.library import SHIPPED, SUFFIX, AdapterLibrary
from ..shared.phrases import PhraseTables
from ..shared.table_files import TableLibrary

FOLDER = "fair_adapters"
_log = logging.getLogger("fair_adapter")


def register_folder() -> None:
    """Make `models/fair_adapters` a model folder that extra_model_paths.yaml can add to."""
    folder = os.path.join(folder_paths.models_dir, FOLDER)
    with contextlib.suppress(OSError):  # a disk that can't be written: then the user has put nothing there
        os.makedirs(folder, exist_ok=True)
    folder_paths.add_model_folder_path(FOLDER, folder)
    paths, _ = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, {SUFFIX})


def library() -> AdapterLibrary:
    """The user's adapters and the shipped ones."""
    return _library(tuple(folder_paths.get_folder_paths(FOLDER)))


@lru_cache(maxsize=4)
def _library(folders: tuple[str, ...]) -> AdapterLibrary:
    return AdapterLibrary((*folders, SHIPPED))


def tables() -> TableLibrary:
    """The user's tables of targets, which lie beside the adapters, and the shipped example."""
    return TableLibrary((*folder_paths.get_folder_paths(FOLDER), SHIPPED))


def phrases() -> PhraseTables:
    """The user's tables of phrases, in `phrases` below the folders of adapters, and the shipped ones."""
    return PhraseTables(folder_paths.get_folder_paths(FOLDER))


def valid_file(files: Callable[[], Any], name: Any) -> bool | str:
    """What `validate_inputs` says of a name in `files()` (a library, tables): True, or why it has none.

    None is a connection, which is checked when it runs.
    """
    if name is None:
        return True
    try:
        files().path(str(name))
    except FairAdapterError as error:
        return str(error)
    return True


def file_state(files: Callable[[], Any], name: str | None) -> str:
    """What `fingerprint_inputs` says: changes with the file that `files()` has of a name; "missing" without
    one, empty for a connection (None), whose value is not known yet."""
    if name is None:
        return ""
    try:
        path = files().path(name)
        status = path.stat()
    except (FairAdapterError, OSError):
        return "missing"
    return f"{path}:{status.st_mtime_ns}:{status.st_size}"


def reading_device() -> torch.device:
    """Where faces are read: beside the model, unless its memory is short or it is no CUDA device."""
    device = management.get_torch_device()
    short = management.vram_state in (management.VRAMState.LOW_VRAM, management.VRAMState.NO_VRAM)
    return device if device.type == "cuda" and not short else torch.device("cpu")


@lru_cache(maxsize=4)
def reader(classifier: str) -> Any:
    """The `FaceReader` of a classifier; kept, because its weights take a while to load."""
    from ..shared.reader import FaceReader

    return FaceReader(classifier, reading_device())


def to_core(images: Tensor) -> Tensor:
    """ComfyUI's IMAGE (N, H, W, C) -> (N, 3, H, W) in [0, 1]; grey is repeated, transparency is dropped.

    Raises FairAdapterError for anything else.
    """
    if images.dim() != 4 or images.shape[-1] not in (1, 3, 4) or not images.shape[1] or not images.shape[2]:
        raise FairAdapterError(
            f"images: expected a batch (N, H, W, 3), found {tuple(images.shape)}; connect an IMAGE output"
        )
    colours = images[..., :3] if images.shape[-1] >= 3 else images.expand(*images.shape[:3], 3)
    return colours.movedim(-1, 1).float().nan_to_num(0.0).clamp(0.0, 1.0)


def to_comfy(images: Sequence[Image.Image]) -> Tensor:
    """PIL pictures of one size -> ComfyUI's IMAGE (N, H, W, 3)."""
    from ..shared.images import to_tensor

    return torch.stack([to_tensor(image) for image in images]).movedim(1, -1).contiguous()


def sender(event: str) -> Callable[[dict[str, Any]], None]:
    """Sends messages to the browser or program whose prompt runs now, from any thread, also afterwards."""
    server = getattr(PromptServer, "instance", None)
    if server is None:
        return lambda data: None
    client = server.client_id
    return lambda data: server.send_sync(event, data, client)


def warn_on_running_node(text: str) -> None:
    """A warning in the log and, in the browser, below the node that runs now."""
    _log.warning("%s", text)
    server, context = getattr(PromptServer, "instance", None), get_executing_context()
    if server is not None and context is not None:
        server.send_progress_text(text, context.node_id)


def stop_if_cancelled() -> None:
    """Raises ComfyUI's own exception after the user pressed cancel. On the executing thread only."""
    management.throw_exception_if_processing_interrupted()
