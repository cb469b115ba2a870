"""ComfyUI's Manager installs the pack: the archive, requirements.txt line by line, install.py, a start."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

from fair_adapter.tests.comfyui.client import Client
from fair_adapter.tests.comfyui.lab import Lab, install_pack


def run(python: Path, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A program in ComfyUI's Python, as the Manager starts it."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    command = [str(python), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=environment, stdin=subprocess.DEVNULL,
        timeout=300,
    )  # fmt: skip


def contents(folder: Path) -> dict[Path, str]:
    """sha256 of every file."""
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_manager_adds_the_pack_and_changes_nothing_else(lab: Lab, tmp_path: Path) -> None:
    pack = install_pack(tmp_path / "custom_nodes")
    files = contents(pack)
    freeze = ("-m", "pip", "--disable-pip-version-check", "freeze", "--all")
    before = run(lab.python, *freeze, folder=tmp_path).stdout
    assert "safetensors==" in before and "torchsde==" in before
    rows = (pack / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [row for row in rows if row.partition("#")[0].strip()] == []  # nothing for pip to do
    result = run(lab.python, "install.py", folder=pack)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert run(lab.python, *freeze, folder=tmp_path).stdout == before
    assert contents(pack) == files


def test_the_start_after_it_has_the_nodes(client: Client) -> None:
    """`base` is what the test above installs."""
    names = {name for name in client.get("/object_info") if name.startswith("FairAdapter_")}
    assert {"FairAdapter_Apply", "FairAdapter_FaceAttributes"} <= names
