"""safetensors files in and out: nothing in a file is trusted, nothing is half written.

Reading refuses with one line what is no safetensors file, is truncated or damaged, or names something twice,
before more than the header is in memory; tensors never are views of the file, which may be replaced or
deleted while they are in use. Writing is deterministic (equal content gives equal bytes, the library alone
would shuffle the metadata) and atomic: another file of that name is untouched until the new one is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from .errors import FairAdapterError

MAX_HEADER = 16 * 2**20  # bytes; the adapter of an SDXL U-Net needs .4 MiB
MAX_FILE = 2 * 2**30
_KINDS = (
    (b"PK\x03\x04", "a zip archive such as a torch pickle (.pt, .pth, .ckpt), which is never opened here"),
    (b"\x80", "a Python pickle, which is never opened here"),
    (b"version https://git-lfs", "a git-lfs pointer instead of the file; run `git lfs pull`"),
    (b"<", "a web page instead of the file"),
)


@dataclass(frozen=True)
class TensorFile:
    """tensors: on the CPU in their stored dtypes.  metadata: the header's texts.
    payload_hash: sha256 in hex of the bytes after the header (kohya's `sshs_model_hash`)."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    payload_hash: str


def read_metadata(path: Path | str, what: str = "adapter") -> dict[str, str]:
    """The header's texts, without reading the tensors. Raises as `read_tensors`."""
    path = Path(path)
    with _opened(path, what) as file:
        return _metadata(_header(file, path, what)[1], path, what)


def read_tensors(path: Path | str, what: str = "adapter", required: str | None = None) -> TensorFile:
    """A whole safetensors file.

    what: what the file should be, for messages.  required: a metadata entry without which it is not read on.

    Raises:
        FairAdapterError: no such file, no safetensors file, truncated, damaged or too large, a name twice,
            the required entry missing.
    """
    path = Path(path)
    with _opened(path, what) as file:
        head, header = _header(file, path, what)
        metadata = _metadata(header, path, what)
        if required is not None and required not in metadata:
            _refuse(
                path,
                what,
                f"a safetensors file without the metadata entry '{required}'",
                "choose another file",
            )
        payload = file.read()
    try:
        tensors = safetensors.torch.load(head + payload)
    except (
        SafetensorError,
        ValueError,
        RuntimeError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
    ) as error:
        _refuse(path, what, f"{len(head) + len(payload)} bytes that do not read as one ({_line(error)})")
    return TensorFile(tensors, metadata, hashlib.sha256(payload).hexdigest())


def _opened(path: Path, what: str) -> Any:
    try:
        if path.is_file():
            return path.open("rb")
        found = "a folder" if path.is_dir() else "no such file"
    except OSError as error:
        raise FairAdapterError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    _refuse(path, what, found, "choose another file")


def _header(file: Any, path: Path, what: str) -> tuple[bytes, dict[str, Any]]:
    """The bytes up to the end of the header, and its JSON."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(64)
    others = _KINDS if start[8:9] != b"{" else ()  # a header's length can begin like any of them
    for magic, kind in others:
        if start.startswith(magic):
            _refuse(path, what, kind, "choose the .safetensors file")
    length = int.from_bytes(start[:8], "little")
    if size > MAX_FILE:
        _refuse(path, what, f"{size} bytes, more than {MAX_FILE}", "choose the adapter, not a model")
    if size < 10 or not 2 <= length <= size - 8:
        _refuse(path, what, f"{size} bytes that do not begin with a header")
    if length > MAX_HEADER:
        _refuse(path, what, f"a header of {length} bytes, more than {MAX_HEADER}", "choose another file")
    file.seek(8)
    text = file.read(length)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        _refuse(path, what, f"a header that does not read ({_line(error)})")
    if not isinstance(header, dict):
        _refuse(path, what, f"a header that is a {type(header).__name__}")
    return start[:8] + text, header


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} is there twice")
    return table


def _metadata(header: dict[str, Any], path: Path, what: str) -> dict[str, str]:
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        _refuse(path, what, "metadata that are no texts")
    return metadata


def _refuse(path: Path, what: str, found: str, remedy: str = "download or export it again") -> NoReturn:
    raise FairAdapterError(f"{path}: expected a {what} (.safetensors), found {found}; {remedy}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


# ---- writing


def serialise(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file; equal arguments give equal bytes."""
    plain = safetensors.torch.save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
    length = int.from_bytes(plain[:8], "little")
    header = {"__metadata__": dict(sorted(metadata.items())), **json.loads(plain[8 : 8 + length])}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)  # the tensors stay aligned
    return len(text).to_bytes(8, "little") + text + plain[8 + length :]


def payload_hash(data: bytes) -> str:
    """sha256 in hex of what follows the header: the same whatever the metadata say."""
    return hashlib.sha256(memoryview(data)[8 + int.from_bytes(data[:8], "little") :]).hexdigest()


def write_bytes(path: Path | str, data: bytes, overwrite: bool = False) -> Path:
    """Write a file atomically; folders are made as needed.

    Raises:
        FairAdapterError: the file exists and may not be overwritten, or cannot be written; nothing is left
            behind, and a file that was there is as it was.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        if path.exists() and not overwrite:
            raise FairAdapterError(f"{path}: exists already; choose another name or ask to overwrite it")
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise FairAdapterError(f"{path}: cannot be written ({reason}); choose another folder") from error
    finally:
        with suppress(OSError):  # gone already, or its folder never was
            partial.unlink()
    return path
