"""Pages that are complete in themselves: templates with one style and common parts, pictures as text."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image

TEMPLATES = Path(__file__).parent / "templates"


def render(name: str, **values: Any) -> str:
    """The page of a template."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name).render(**values)


def data_url(image: Image.Image, photograph: bool = False) -> str:
    """The picture as text for an <img>: JPEG for photographs, PNG for drawings."""
    data = io.BytesIO()
    if photograph:
        image.save(data, format="JPEG", quality=88)
    else:
        image.save(data, format="PNG", optimize=True)
    kind = "jpeg" if photograph else "png"
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"
