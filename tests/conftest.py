"""What every test relies on: the import name `fair_adapter`, few threads, no model hub, fixed examples.

The processes of `-n` share out whole files, and a host's folder stays with one: its server is started once.

Tests say `from fair_adapter.shared.x import y`; helpers of several test files are imported the same way
(`from fair_adapter.tests.x import y`). Markers are listed in pyproject.toml.
"""

import os
import sys
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT / "trainer"))  # the import name, as the programs find it
import fair_adapter  # noqa: F401

sys.path.pop(0)

# `python -m pytest` puts the current folder on the path, where a bare `import shared` would work by accident.
sys.path[:] = [entry for entry in sys.path if Path(entry or os.curdir).resolve() != _ROOT]

# Before torch is imported, and for the programs that tests start. More threads than cores only wait for each
# other, and tensors as small as the tests' are no faster on many.
_threads = max(1, min(4, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))
if "PYTEST_XDIST_WORKER" in os.environ:  # started by a process that took all cores for itself
    os.environ["OMP_NUM_THREADS"] = str(_threads)
os.environ.setdefault("OMP_NUM_THREADS", str(_threads))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["HF_HUB_OFFLINE"] = "1"  # whatever a test needs is in the repository or made by the test

import pytest
from hypothesis import settings

settings.register_profile("suite", deadline=None, derandomize=True, database=None, max_examples=50)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--webui", metavar="DIR", help="run the a1111 browser scenario in this installation (--webui=DIR)"
    )
    parser.addoption(
        "--comfyui", metavar="DIR", help="run the ComfyUI tests in this folder of ComfyUI (--comfyui=DIR)"
    )


def pytest_configure(config: pytest.Config) -> None:
    from fair_adapter.tests.early import OPTIONS, REMEDY

    if config.rootpath != _ROOT and any(config.getoption(option) is not None for option in OPTIONS):
        raise pytest.UsageError(REMEDY)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `--webui=DIR` the scenario for an installation alone runs, with `--comfyui=DIR` ComfyUI's."""
    chosen = items
    if config.getoption("--webui") is not None:
        chosen = [item for item in items if "webui_or_real" in getattr(item, "fixturenames", ())]
    elif config.getoption("--comfyui") is not None:
        chosen = [item for item in items if _ROOT / "tests" / "comfyui" in item.path.parents]
    if chosen is not items:
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One process takes a whole file, or a whole host's folder. (xdist's own groups need an older pytest.)"""
    from xdist.scheduler import LoadScopeScheduling

    class ByFileOrHost(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "/".join(nodeid.partition("::")[0].split("/")[:2])  # of tests/x.py and tests/host/x.py

    return ByFileOrHost(config, log)
