"""Blender's Python module in an environment of its own: neither the project's nor a host's packages see
it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from ....install import InstallError, build, clean_environ, environment_python, explain, pip_install, sweep
from ....shared.errors import FairAdapterError

BLENDER = "4.5.15"
ROWS = (f"bpy=={BLENDER}", "pillow>=11,<14")  # bpy: GPL-3.0, run as a tool; brings numpy
PYTHON = (3, 11)  # the one that bpy 4.5 is built for
_STAMP = "fair-adapter-complete.txt"


def find_python() -> list[str]:
    """The command of a Python 3.11 on this machine.

    Raises:
        FairAdapterError: there is none.
    """
    if sys.version_info[:2] == PYTHON:
        return [sys.executable]
    if path := shutil.which("python3.11"):
        return [path]
    if (launcher := shutil.which("py")) and subprocess.run(
        [launcher, "-3.11", "-V"], capture_output=True
    ).returncode == 0:
        return [launcher, "-3.11"]
    found = ".".join(map(str, sys.version_info[:2]))
    raise FairAdapterError(
        f"Blender {BLENDER} as a Python module (PyPI bpy, GPL-3.0) needs Python 3.11, found {found} and "
        "no python3.11; "
        "install Python 3.11 beside it, or give an interpreter that has bpy with --blender PATH"
    )


def ready_environment(folder: Path) -> Path:
    """Makes or completes the environment at `folder` (1.2 GB on the disk); returns its interpreter.

    Raises:
        FairAdapterError: it can't be made; the line says why and what helps.
    """
    python, stamp, rows = environment_python(folder), folder / _STAMP, "\n".join(ROWS)
    if stamp.is_file() and stamp.read_text("utf-8", errors="replace") == rows and has_blender(python):
        return python
    print(f"setting up {folder} with Blender {BLENDER} (PyPI bpy, GPL-3.0; 1.2 GB) ...", flush=True)
    try:
        if not python.exists():
            build(folder, find_python())
        sweep(folder)
        pip_install(python, *ROWS)
    except InstallError as error:
        raise FairAdapterError(str(error)) from error
    if not has_blender(python):
        raise FairAdapterError(
            f"{folder} was set up but Blender doesn't load in it ({_why_not(python)}); install what is "
            "named, or "
            "delete the folder and run the same command again"
        )
    stamp.write_text(rows, encoding="utf-8")
    return python


def has_blender(python: Path) -> bool:
    """Whether this interpreter can import bpy, Pillow and numpy."""
    return not _why_not(python)


def _why_not(python: Path) -> str:
    command = [str(python), "-c", "import bpy, numpy, PIL"]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, errors="replace", env=clean_environ()
        )
    except OSError as error:
        return str(error)
    if result.returncode == 0:
        return ""
    return explain(result.stderr)[0]
