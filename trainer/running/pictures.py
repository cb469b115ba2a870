"""Folders of pictures, some of which may not be readable: the rest is read, and the end says what was not."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ...shared.errors import FairAdapterError
from ...shared.images import open_image


def open_or_note(path: Path, lost: list[str]) -> Image.Image | None:
    """`open_image`, or None and one more line in `lost` that names the file and the reason."""
    try:
        return open_image(path)
    except FairAdapterError as error:
        lost.append(str(error))
        return None


def tell_left_out(lost: Sequence[str], others: str = "") -> None:
    """One line of the error stream for each picture that was not read, and one for files of other kinds.

    others: of `other_files`.
    """
    for line in lost:
        print(f"left out: {line}", file=sys.stderr)
    if others:
        print(f"left out as no pictures: {others}", file=sys.stderr)
