"""Diagrams that programs write: matplotlib without a window, loaded when the first is drawn."""

from __future__ import annotations

import io
from typing import Any


def subplots(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    """A figure of `width` x `height` inches and its axes, (rows, columns)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt.subplots(rows, columns, figsize=(width, height), squeeze=False)


def to_png(figure: Any) -> bytes:
    """The finished figure, which is closed."""
    import matplotlib.pyplot as plt

    figure.tight_layout()
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    plt.close(figure)
    return data.getvalue()
