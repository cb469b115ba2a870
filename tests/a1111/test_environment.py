"""install.py and the core in an environment with a host's packages."""

import subprocess
import sys
from pathlib import Path

import pytest

from fair_adapter.tests.a1111 import lab
from fair_adapter.tests.a1111.conftest import KINDS, host_python, put_adapters

pytestmark = pytest.mark.a1111
PINS = {
    "a1111": {"gradio": "3.41.2", "pydantic": "1.10", "numpy": "1.26.2", "pillow": "9.5.0"},
    "forge": {"gradio": "4.40.0", "pydantic": "2.8.2", "numpy": "1.26.2", "pillow": "9.5.0"},
}
# What the script's own modules do in a host, without the trainer's packages.
PROGRAM = """
import importlib.machinery, importlib.util, sys
from pathlib import Path
root = Path(sys.argv[1])
spec = importlib.machinery.ModuleSpec("fair_adapter", None, is_package=True)
spec.submodule_search_locations = [str(root)]
sys.modules["fair_adapter"] = importlib.util.module_from_spec(spec)
for name in ("facenet_pytorch", "diffusers", "ot", "transformers", "open_clip", "scipy", "cv2"):
    sys.modules[name] = None  # an import of it fails
import torch
from fair_adapter.shared.images import load_image
from fair_adapter.shared.library import AdapterLibrary
from fair_adapter.shared.presets import linked, presets
from fair_adapter.shared.reader import FaceReader
from fair_adapter.shared.statistics import FairnessStatistics
from fair_adapter.a1111_extension import generation, tab, ui, views
library = AdapterLibrary([Path(sys.argv[2])])
adapter = library.load("random-both")
weights = adapter.at("gender=70/30")
reader = FaceReader()
picture = load_image(root / "tests" / "data" / "faces" / "female_black_0.jpg")
faces = reader.read(picture[None])
statistics = FairnessStatistics(reader.attributes)
statistics.add(faces)
statistics.draw(weights.target)
print(views.panel(statistics, [], "x", target=weights.target)[:20])
print([bar.label for bar in faces[0][0].bars], len(weights.lora), linked([50, 50], 0, 70))
"""


def frozen(python: Path) -> dict[str, str]:
    command = [str(python), "-m", "pip", "freeze", "--all"]
    rows = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return {r.partition("==")[0].lower().replace("_", "-"): r.partition("==")[2] for r in rows if "==" in r}


@pytest.mark.parametrize("kind", KINDS)
def test_install_adds_and_changes_no_package(kind: str, tmp_path: Path) -> None:
    python = host_python(kind)
    root = lab.make_installation(tmp_path / "webui")
    before = frozen(python)
    assert {name: before[name][: len(pin)] for name, pin in PINS[kind].items()} == PINS[kind]
    result = lab.run_install(python, root)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert frozen(python) == before


@pytest.mark.parametrize("kind", KINDS)
def test_core_and_widgets_run_with_a_hosts_packages(kind: str, tmp_path: Path) -> None:
    python = host_python(kind)
    put_adapters(tmp_path)
    command = [str(python), "-c", PROGRAM, str(lab.ROOT), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, env=lab.environ(tmp_path, False))
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[1] == "['female', 'black', 'young'] 12 [70.0, 30.0]"


def test_scripts_load_without_the_trainers_packages() -> None:
    """Modules that a host loads import nothing that it may lack."""
    allowed = {"torch", "numpy", "PIL", "gradio", "modules", "fastapi"} | set(sys.stdlib_module_names)
    import ast

    for path in (lab.ROOT / "a1111_extension").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert {name.partition(".")[0] for name in names} <= allowed, path
