"""Pictures in and out: any PIL image to the canonical tensor (3, H, W), RGB in [0, 1], and back.

Grey, palette, CMYK, 16-bit and float images become RGB; transparency is laid over white; EXIF rotation
is applied, so that a portrait photographed upright is upright here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .errors import FairAdapterError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
_WIDE = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")


def open_image(path: Path | str) -> Image.Image:
    """The picture in ``path`` as an upright 8-bit RGB image.

    Raises:
        FairAdapterError: the file is missing, no image, truncated or too large to open safely.
    """
    path = Path(path)
    if not path.is_file():
        raise FairAdapterError(
            f"{path}: expected an image file, found {'a folder' if path.is_dir() else 'none'}"
        )
    try:
        with Image.open(path) as image:
            image.load()
            return to_rgb(image)
    except UnidentifiedImageError as error:
        raise FairAdapterError(
            f"{path}: expected an image ({', '.join(s[1:] for s in SUFFIXES)}), found {path.stat().st_size} "
            "bytes of something else; convert it or leave it out"
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise FairAdapterError(
            f"{path}: expected a complete image, found one that does not decode ({_short(error)}); "
            "save or download it again"
        ) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """An upright 8-bit RGB copy of any PIL image; transparent parts become white."""
    image = ImageOps.exif_transpose(image) or image
    if image.mode in _WIDE:
        return Image.fromarray(_eight_bits(np.asarray(image), image.mode)).convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB") if image.mode != "RGB" else image.copy()


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


def image_files(path: Path | str) -> list[Path]:
    """The image itself, or the images directly inside a folder in the order of their names.

    Raises:
        FairAdapterError: the path does not exist or the folder holds no image.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FairAdapterError(
            f"{path}: expected an image or a folder of images, found nothing; check the path"
        )
    files = sorted(p for p in path.iterdir() if p.is_file() and p.suffix.lower() in SUFFIXES)
    if not files:
        kinds = ", ".join(s[1:] for s in SUFFIXES)
        raise FairAdapterError(f"{path}: expected images ({kinds}), found none in this folder")
    return files


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
    """First line of an exception's message, without a final stop."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
