"""The scenario in a whole installation, by the command that docs/a1111.md gives, with the stand-in as one.

Such an installation shows what real ones do: a pyproject.toml with settings for pytest, 512 x 512 and minutes
a step, errors of page and log that no extension raised, Fair Adapter among the extensions under any name.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fair_adapter.tests import early
from fair_adapter.tests.a1111 import browser, lab
from fair_adapter.tests.a1111.conftest import KINDS, host_python

pytestmark = pytest.mark.a1111


def whole(root: Path, kind: str) -> Path:
    """The stand-in as an installation without the extension."""
    lab.make_installation(root, extension=False)
    settings = '[tool.pytest.ini_options]\nbase_url = "http://127.0.0.1:7860"\n'
    (root / "pyproject.toml").write_text(settings)
    if kind == "forge":
        (root / "modules_forge").mkdir()
    return root


def user_runs(*arguments: str, marker: str = "a1111", **more: str) -> subprocess.CompletedProcess[str]:
    """`python -m pytest -m MARKER ...` in the repository."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "FAIR_ADAPTER_TORCH"))}
    command = [sys.executable, "-m", "pytest", "-m", marker, "-p", "no:cacheprovider", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=lab.ROOT, env={**kept, **more}, timeout=900
    )


def contents(root: Path) -> set[Path]:
    """What an installation has in the folders where the scenario puts something for a while."""
    folders = ("extensions", "models/Stable-diffusion", "models/fair_adapters")
    return {path for folder in folders for path in (root / folder).glob("*")}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_scenario_passes_in_an_installation(kind: str, tmp_path: Path) -> None:
    """AUTOMATIC1111 gets a link for the time; Forge has the extension already, under another name."""
    browser.require()
    root = whole(tmp_path / kind, kind)
    if kind == "forge":
        (root / "extensions" / "sd-webui-fair").symlink_to(lab.ROOT, target_is_directory=True)
    before = contents(root)
    env = lab.environ(root, kind == "forge", FAIR_ADAPTER_WEBUI_PYTHON=str(host_python(kind)))
    run = user_runs(f"--webui={root}", **env)
    assert run.returncode == 0 and "1 passed" in run.stdout, run.stdout[-6000:] + run.stderr[-2000:]
    assert contents(root) == before, "what was added has gone again"


@pytest.mark.parametrize("paths", [(), ("tests/a1111/test_browser.py",)])
def test_a_blank_before_the_folder_names_the_right_form(paths: tuple[str, ...], tmp_path: Path) -> None:
    root = whole(tmp_path / "webui", "a1111")
    (tmp_path / "site").mkdir()
    early.register(tmp_path / "site")  # as `install.py test` does in its environment
    run = user_runs("--webui", str(root), *paths, PYTHONPATH=str(tmp_path / "site"))
    said = (run.stdout + run.stderr).strip().splitlines()
    assert run.returncode == 4 and said == [f"ERROR: {early.REMEDY}"]


def test_a_path_and_a_blank_are_told_without_the_plugin(tmp_path: Path) -> None:
    root = whole(tmp_path / "webui", "a1111")
    run = user_runs("--webui", str(root), "tests/a1111/test_browser.py")
    assert run.returncode == 4 and early.REMEDY in run.stderr


def test_an_installed_extension_is_found_under_any_name(tmp_path: Path) -> None:
    copy, linked, none = (whole(tmp_path / name, "a1111") for name in ("copy", "linked", "none"))
    lab.install_extension(copy).rename(copy / "extensions" / "0-fairness")
    (linked / "extensions" / "x").symlink_to(lab.ROOT, target_is_directory=True)
    (none / "extensions" / lab.MARK).symlink_to(tmp_path / "gone", target_is_directory=True)
    for root, added in ((copy, False), (linked, False), (none, True)):
        lab.add_extension(root)
        assert (root / "extensions" / lab.MARK).exists() == added
