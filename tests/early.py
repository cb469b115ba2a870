"""Catches `--webui DIR` and `--comfyui DIR`, where pytest makes DIR its root.

`python tests/early.py` adds this to an environment.

pytest takes words after an option it does not know yet for paths, and looks for its settings and conftest.py
there. So nothing of this repository is read any more, tests/conftest.py included: only a plugin of
the environment still runs. `install.py test` adds it.
"""

import sysconfig
from pathlib import Path
from typing import Any

import pytest

NAME = "fair_adapter_early"
OPTIONS = ("--webui", "--comfyui")
REMEDY = (
    "write --webui=DIR or --comfyui=DIR, with '=': after a blank pytest takes DIR for the folder of the tests"
)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: Any, parser: Any, args: list[str]) -> None:
    if any(option in args for option in OPTIONS):
        raise pytest.UsageError(REMEDY)


def register(site: Path) -> None:
    """Make this file a pytest plugin of the environment with the site-packages folder `site`."""
    info = site / f"{NAME}-0.dist-info"
    info.mkdir(exist_ok=True)
    (site / f"{NAME}.py").write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 0\n")
    (info / "entry_points.txt").write_text(f"[pytest11]\n{NAME} = {NAME}\n")
    files = (f"{NAME}.py", *(f"{info.name}/{name}" for name in ("METADATA", "entry_points.txt", "RECORD")))
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in files))  # last: complete from now on


if __name__ == "__main__":
    register(Path(sysconfig.get_path("purelib")))
