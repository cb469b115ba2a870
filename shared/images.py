"""Pictures in and out: any PIL image to the canonical tensor (3, H, W), RGB in [0, 1], and back.

Grey, palette, CMYK, 16-bit and float images become RGB; transparency is laid over white; EXIF rotation
is applied, so that a portrait photographed upright is upright here. What else a file says beside its pixels
is not needed, so that damage there does not cost the picture.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from .errors import FairAdapterError

SUFFIXES = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".gif",
)  # fmt: skip
DECODER_ERRORS: tuple[type[Exception], ...] = (  # what Pillow's decoders raise of files that are damaged
    OSError, EOFError, SyntaxError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError,
    RuntimeError, AssertionError, BufferError, MemoryError, Warning, struct.error, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip
_WIDE = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")
_ORIENTATION = 0x0112
_TURNS = {  # by the EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PNG = b"\x89PNG\r\n\x1a\n"
_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # chunks of a PNG that its pixels need
_BEGINNINGS = ((_PNG, "PNG"), (b"\xff\xd8\xff", "JPEG"), (b"GIF8", "GIF"), (b"BM", "BMP"),
               (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"))  # fmt: skip
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIF"}


def open_image(path: Path | str) -> Image.Image:
    """The picture in ``path`` as an upright 8-bit RGB image, the first of several.

    Raises:
        FairAdapterError: the file is missing, no image, truncated or too large to open safely.
    """
    path = Path(path)
    if not os.path.isfile(path):  # unlike the path's own test, it never raises
        raise FairAdapterError(
            f"{path}: expected an image file, found {'a folder' if os.path.isdir(path) else 'none'}"
        )
    try:
        return _decode(path)
    except DECODER_ERRORS as error:
        fault = error
    try:
        pixels = _pixel_chunks(path)
        if pixels is not None:
            return _decode(io.BytesIO(pixels))
    except DECODER_ERRORS as error:
        fault = error
    raise FairAdapterError(f"{path}: expected {_refusal(path, fault)}") from fault


def to_rgb(image: Image.Image) -> Image.Image:
    """An upright 8-bit RGB copy of any PIL image; transparent parts become white.

    Of what the image says beside its pixels, only the colour profile stays: an orientation in a saved copy
    would turn it again.
    """
    upright = _upright(image)
    if upright.mode in _WIDE:
        levels = _eight_bits(np.asarray(upright), upright.mode)
        rgb = Image.fromarray(levels).convert("RGB")
    elif "transparency" in upright.info or upright.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        white = Image.new("RGBA", upright.size, (255, 255, 255, 255))
        rgb = Image.alpha_composite(white, upright.convert("RGBA")).convert("RGB")
    else:
        rgb = upright.convert("RGB") if upright.mode != "RGB" else upright.copy()
    rgb.info = {"icc_profile": profile} if (profile := image.info.get("icc_profile")) else {}
    return rgb


def to_tensor(image: Image.Image) -> Tensor:
    """Any PIL image -> float32 RGB tensor (3, H, W) in [0, 1]."""
    array = np.array(to_rgb(image), dtype=np.float32) / 255.0
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def load_image(path: Path | str) -> Tensor:
    """The picture in ``path`` as float32 RGB (3, H, W) in [0, 1]; errors as `open_image`."""
    return to_tensor(open_image(path))


def to_pil(image: Tensor) -> Image.Image:
    """RGB tensor (3, H, W) or (1, 3, H, W), nominally in [0, 1] -> 8-bit PIL image; the rest is clipped.

    Raises:
        FairAdapterError: another shape.
    """
    if image.dim() == 4 and image.shape[0] == 1:
        image = image[0]
    if image.dim() != 3 or image.shape[0] != 3:
        raise FairAdapterError(f"image tensor: expected (3, H, W) RGB in [0, 1], found {tuple(image.shape)}")
    array = to_bytes(image.detach()).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(np.ascontiguousarray(array))


def to_bytes(images: Tensor) -> Tensor:
    """Values in [0, 1] -> uint8 levels of the same shape, rounded; NaN becomes 0."""
    return images.float().nan_to_num(0.0).clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)


def image_files(path: Path | str, below: bool = False) -> list[Path]:
    """The image itself, or the images inside a folder in the order of their names.

    below: also those in folders within it.

    Raises:
        FairAdapterError: the path does not exist, can't be listed or holds no image.
    """
    path = Path(path)
    if os.path.isfile(path):
        return [path]
    if not os.path.isdir(path):
        raise FairAdapterError(
            f"{path}: expected an image or a folder of images, found nothing; check the path"
        )
    files = [file for file in _listed(path, below) if file.suffix.lower() in SUFFIXES]
    if not files:
        kinds, others = ", ".join(s[1:] for s in SUFFIXES), other_files(path, below)
        place = "this folder or those within it" if below else "this folder"
        raise FairAdapterError(
            f"{path}: expected images ({kinds}), found none in {place}" + (f" but {others}" if others else "")
        )
    return files


def other_files(path: Path | str, below: bool = False) -> str:
    """What `image_files` passes over in a folder by its suffix, such as "2 .heic, 20 .txt"; "" for nothing.

    Hidden files are left out.  Raises FairAdapterError for a folder that can't be listed.
    """
    path = Path(path)
    files = _listed(path, below) if os.path.isdir(path) else []
    kinds = Counter(
        file.suffix.lower() or "without a suffix"
        for file in files
        if file.suffix.lower() not in SUFFIXES and not file.name.startswith(".")
    )
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))


def _listed(folder: Path, below: bool) -> list[Path]:
    try:
        entries = folder.rglob("*") if below else folder.iterdir()
        return sorted(file for file in entries if os.path.isfile(file))
    except OSError as error:
        raise FairAdapterError(
            f"{folder}: expected a folder that can be listed, found one that can't ({error.strerror}); "
            "check its permissions"
        ) from error


def _decode(source: Path | io.BytesIO) -> Image.Image:
    with Image.open(source) as image:
        if image.format == "TIFF":  # its EXIF is read from the file, which older Pillows close on loading
            with suppress(*DECODER_ERRORS):
                image.getexif()
        image.load()
        return to_rgb(image)


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF says; as it is where that can't be read.

    Only the orientation is read. `ImageOps.exif_transpose` writes all of the EXIF anew, which fails at any
    damaged entry, such as the rationals with denominator 0 that some cameras write.
    """
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except DECODER_ERRORS:
        turn = None
    return image if turn is None else image.transpose(turn)


def _pixel_chunks(path: Path) -> bytes | None:
    """A PNG without texts, profiles and dates, any of which Pillow refuses a file for; None for another file.

    The orientation stays where it is undamaged, and what is wrong with the pixels stays wrong.
    """
    with path.open("rb") as file:
        if file.read(len(_PNG)) != _PNG:
            return None
        data = _PNG + file.read()
    kept, at = [_PNG], len(_PNG)
    while at + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        chunk, following = data[at : at + length + 12], at + length + 12
        whole = len(chunk) == length + 12 and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        if kind in _PIXELS or (whole and kind == b"eXIf"):
            kept.append(chunk)
        elif not whole:  # its length may be what is damaged
            marks = [found for name in _PIXELS if (found := data.find(name, at + 8)) >= 0]
            following = min(marks, default=len(data)) - 4
        at = following
    return b"".join(kept)


def _refusal(path: Path, fault: Exception) -> str:
    """What was expected of a file that does not decode, what was found, and what helps."""
    reader = f"Pillow {PIL.__version__}"
    if isinstance(fault, UnidentifiedImageError):
        with path.open("rb") as file:
            beginning = file.read(16)
        brand = _BRANDS.get(beginning[8:12]) if beginning[4:8] == b"ftyp" else None
        known = next((name for start, name in _BEGINNINGS if beginning.startswith(start)), None)
        if brand is not None:
            return f"an image that {reader} reads, found {brand}; convert it" + (
                " or update Pillow to 11.3 or later" if brand == "AVIF" else ""
            )
        if known is None:
            kinds = ", ".join(suffix[1:] for suffix in SUFFIXES)
            size = path.stat().st_size
            return f"an image ({kinds}), found {size} bytes of something else; convert it or leave it out"
        fault = ValueError(f"the beginning of a {known} and no more that {reader} reads")
    if isinstance(fault, MemoryError):
        return "an image that fits into memory, found a larger one; reduce it"
    return f"a complete image, found one that does not decode ({_short(fault)}); save or download it again"


def _eight_bits(array: np.ndarray, mode: str) -> np.ndarray:
    """Wide greys to bytes: 16-bit levels by their upper byte, floats in [0, 1] or [0, 255] as they are."""
    values = np.nan_to_num(array.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    if mode.startswith("I;16"):
        scale = 255.0 / 65535.0
    elif mode == "I":  # 32 bits, which hold either 8-bit or 16-bit levels
        scale = 255.0 / 65535.0 if values.max(initial=0.0) > 255.0 else 1.0
    else:
        scale = 255.0 if values.max(initial=0.0) <= 1.0 else 1.0
    return np.clip(np.rint(values * scale), 0, 255).astype(np.uint8)


def _short(error: BaseException) -> str:
    """First line of an exception's message, without a final stop; a bare one by its type."""
    lines = str(error).strip().splitlines()
    bare = isinstance(error, (LookupError, AssertionError, AttributeError)) or not lines
    return f"{type(error).__name__} {lines[0] if lines else ''}".strip() if bare else lines[0].rstrip(".")
