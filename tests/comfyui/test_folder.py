"""`--comfyui=DIR`: the tests in a ComfyUI as people have it, with the lab's tree and packages as one."""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

from fair_adapter.tests import early
from fair_adapter.tests.a1111.test_installation import user_runs
from fair_adapter.tests.comfyui.lab import FRONT_ENDS, Lab


def whole(lab: Lab, root: Path) -> Path:
    """ComfyUI's tree with a virtual environment in it that has the front end as a package."""
    if not lab.front_ends:
        pytest.skip("this is a run in such a folder")
    copytree(lab.comfyui, root, ignore=ignore_patterns("__pycache__"))
    venv.create(root / "venv", with_pip=True)
    (site,) = (root / "venv").glob("[lL]ib/**/site-packages")
    said = "import sys; print(*[p for p in sys.path if p.endswith('-packages')], sep='\\n')"
    lent = subprocess.run([lab.python, "-c", said], capture_output=True, text=True, check=True).stdout
    (site / "lent.pth").write_text(lent)
    package, info = (
        site / "comfyui_frontend_package",
        site / f"comfyui_frontend_package-{FRONT_ENDS[0]}.dist-info",
    )
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "static").symlink_to(lab.front_ends[FRONT_ENDS[0]], target_is_directory=True)
    info.mkdir()
    name = "comfyui-frontend-package"
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {FRONT_ENDS[0]}\n")
    return root


def files(root: Path) -> set[Path]:
    return {path for path in root.rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.slow
def test_the_same_tests_run_in_a_folder_and_leave_nothing_there(lab: Lab, tmp_path: Path) -> None:
    root = whole(lab, tmp_path / "ComfyUI")
    before = files(root)
    chosen = ("tests/comfyui/test_inside.py", "tests/comfyui/test_manager.py")
    run = user_runs(f"--comfyui={root}", *chosen, marker="comfyui", FAIR_ADAPTER_LAB=str(tmp_path / "none"))
    assert run.returncode == 0 and " passed" in run.stdout, run.stdout[-6000:] + run.stderr[-2000:]
    assert "skipped" not in run.stdout
    assert not (tmp_path / "none").exists(), "no lab was built"
    assert files(root) == before


def test_a_blank_before_the_folder_names_the_right_form(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    early.register(tmp_path / "site")  # as `install.py test` does in its environment
    run = user_runs("--comfyui", str(tmp_path), marker="comfyui", PYTHONPATH=str(tmp_path / "site"))
    assert run.returncode == 4 and (run.stdout + run.stderr).strip() == f"ERROR: {early.REMEDY}"


def test_another_folder_is_told(tmp_path: Path) -> None:
    run = user_runs(f"--comfyui={tmp_path}", "tests/comfyui/test_manager.py", marker="comfyui")
    assert run.returncode == 1 and "expected the folder of ComfyUI, found no main.py" in run.stdout
