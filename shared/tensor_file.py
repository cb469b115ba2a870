"""safetensors files in and out: nothing in a file is trusted, nothing is half written.

Reading refuses with one line what is no safetensors file, is truncated or damaged, or names something twice,
before more than the header is in memory. `read_header` reads no further, whatever the size of the file.
Tensors never are views of the file, which may be replaced or deleted while they are in use, and are read one
by one: a file takes its own size of memory. (The library's `load` takes three times that, and does not know
all types that it writes.) Writing is deterministic (equal content gives equal bytes, the library alone would
shuffle the metadata) and atomic: another file of that name is untouched until the new one is complete.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn

import safetensors.torch
import torch
from torch import Tensor

from .errors import FairAdapterError, one_line, reason

MAX_HEADER = 16 * 2**20  # bytes; the adapter of an SDXL U-Net needs .4 MiB
MAX_FILE = 2 * 2**30
_KINDS = (
    (b"PK\x03\x04", "a zip archive such as a torch pickle (.pt, .pth, .ckpt), which is never opened here"),
    (b"\x80", "a Python pickle, which is never opened here"),
    (b"version https://git-lfs", "a git-lfs pointer instead of the file; run `git lfs pull`"),
    (b"<", "a web page instead of the file"),
)
_TYPES = {  # the format's names: bits of a number, torch's name (as far as it has one for whole bytes)
    "BOOL": (8, "bool"), "U8": (8, "uint8"), "I8": (8, "int8"), "U16": (16, "uint16"), "I16": (16, "int16"),
    "U32": (32, "uint32"), "I32": (32, "int32"), "U64": (64, "uint64"), "I64": (64, "int64"),
    "F64": (64, "float64"), "F32": (32, "float32"), "F16": (16, "float16"), "BF16": (16, "bfloat16"),
    "C64": (64, "complex64"), "F8_E4M3": (8, "float8_e4m3fn"), "F8_E5M2": (8, "float8_e5m2"),
    "F8_E4M3FNUZ": (8, "float8_e4m3fnuz"), "F8_E5M2FNUZ": (8, "float8_e5m2fnuz"),
    "F8_E8M0": (8, "float8_e8m0fnu"), "F6_E2M3": (6, ""), "F6_E3M2": (6, ""), "F4": (4, ""),
}  # fmt: skip


@dataclass(frozen=True)
class TensorLayout:
    """dtype: torch's name, "torch.float32"; the format's own where torch has none.  shape: as stored."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class TensorHeader:
    """What stands before the tensors.

    layouts: by key, in the order of the file, without gaps.  metadata: texts.  start: of the first tensor, in
    bytes from the beginning of the file.
    """

    layouts: dict[str, TensorLayout]
    metadata: dict[str, str]
    start: int


@dataclass(frozen=True)
class TensorFile:
    """tensors: on the CPU in their stored dtypes.  metadata: the header's texts.
    payload_hash: sha256 in hex of the bytes after the header (kohya's `sshs_model_hash`)."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    payload_hash: str


def read_header(path: Path | str, what: str = "adapter", required: str | None = None) -> TensorHeader:
    """Names, types and shapes of the tensors and the metadata, without reading a tensor.

    Raises as `read_tensors`, but for damage within a tensor.
    """
    path = Path(path)
    with _opened(path, what) as file:
        return _header(file, path, what, required)


def read_tensors(path: Path | str, what: str = "adapter", required: str | None = None) -> TensorFile:
    """A whole safetensors file.

    what: what the file should be, for messages.  required: a metadata entry without which it is not read on.

    Raises:
        FairAdapterError: no such file, no safetensors file, truncated, damaged or too large, a name twice,
            a type that this PyTorch does not have, the required entry missing.
    """
    path = Path(path)
    with _opened(path, what) as file:
        header = _header(file, path, what, required)
        digest, tensors = hashlib.sha256(), {}
        file.seek(header.start)
        for key, layout in header.layouts.items():
            dtype = getattr(torch, layout.dtype.removeprefix("torch."), None)
            if not isinstance(dtype, torch.dtype):
                _refuse(path, what, f"'{key}' of type {layout.dtype}", "it takes a newer PyTorch")
            tensors[key] = torch.empty(layout.shape, dtype=dtype)
            numbers = memoryview(tensors[key].reshape(-1).view(torch.uint8).numpy())
            if file.readinto(numbers) != len(numbers):
                _refuse(path, what, f"fewer bytes than a moment ago, '{key}' ends early")
            digest.update(numbers)
    return TensorFile(tensors, header.metadata, digest.hexdigest())


@contextmanager
def _opened(path: Path, what: str) -> Iterator[BufferedReader]:
    """The file; whatever a disk or network raises while it is read becomes one line."""
    try:
        if path.is_file():
            with path.open("rb") as file:
                yield file
            return
        found = "a folder" if path.is_dir() else "no such file"
    except OSError as error:
        cause = error.strerror or type(error).__name__
        raise FairAdapterError(f"{path}: cannot be read ({cause}); check its permissions and disk") from error
    _refuse(path, what, found, "choose another file")


def _header(file: BufferedReader, path: Path, what: str, required: str | None) -> TensorHeader:
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
    try:
        text = file.read(length).decode("utf-8")
        header = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        _refuse(path, what, f"a header that does not read ({reason(error)})")
    if not isinstance(header, dict):
        _refuse(path, what, f"a header that is a {type(header).__name__}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        _refuse(path, what, "metadata that are no texts")
    if required is not None and required not in metadata:
        found = f"a safetensors file without the metadata entry '{required}'"
        _refuse(path, what, found, "choose another file")
    try:
        layouts = _layouts(header, size - 8 - length)
    except ValueError as error:
        _refuse(path, what, f"{size} bytes that do not read as one ({error})")
    return TensorHeader(layouts, metadata, 8 + length)


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads`: an object that names nothing twice. Raises ValueError."""
    table: dict[str, Any] = {}
    for name, value in pairs:
        if name in table:
            raise ValueError(f"{name[:200]!r} is there twice")
        table[name] = value
    return table


def _layouts(header: Mapping[str, Any], size: int) -> dict[str, TensorLayout]:
    """The tensors in the order in which they fill the `size` bytes after the header, none left over.

    Raises ValueError.
    """
    places = sorted((*_place(key, entry), key) for key, entry in header.items())
    layouts, end = {}, 0
    for first, last, key in places:
        if first != end:
            raise ValueError(f"'{one_line(key, 120)}' begins at {first}, expected {end}")
        end, entry = last, header[key]
        name = _TYPES[entry["dtype"]][1]
        layouts[key] = TensorLayout(f"torch.{name}" if name else entry["dtype"], tuple(entry["shape"]))
    if end != size:
        raise ValueError(f"tensors of {end} bytes in {size}")
    return layouts


def _place(key: str, entry: Any) -> tuple[int, int]:
    """First and last byte of a tensor. Raises ValueError unless they fit its type and shape."""
    name = f"'{one_line(key, 120)}'"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name} without type, shape and place")
    dtype, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _TYPES:
        raise ValueError(f"{name} of the unknown type {one_line(dtype, 40)}")
    if not all(_counts(part) for part in (shape, place)) or len(place) != 2:
        raise ValueError(f"{name} without a shape and a place of whole numbers")
    if key.encode("utf-8", "ignore").decode() != key:
        raise ValueError(f"{name}, a name that is no text")
    first, last = place
    if 8 * (last - first) != _TYPES[dtype][0] * math.prod(shape):
        raise ValueError(f"{name}: {last - first} bytes for {dtype} of shape {one_line(shape, 80)}")
    return first, last


def _counts(values: Any) -> bool:
    """Whether this is a short list of whole numbers that a file can have so many of."""
    whole = isinstance(values, list) and len(values) <= 16
    return whole and all(type(value) is int and 0 <= value <= 2**63 for value in values)


def _refuse(path: Path, what: str, found: str, remedy: str = "download or export it again") -> NoReturn:
    raise FairAdapterError(
        f"{path}: expected a {what} (.safetensors), found {one_line(found, 400)}; {remedy}"
    )


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
