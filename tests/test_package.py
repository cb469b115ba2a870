"""Rules of the repository as a whole: one import name, light imports, a small clone, licences."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OWN = {"shared", "trainer", "studio", "comfy_nodes", "a1111_extension", "scripts", "tests", "install"}
HOSTS = {"comfy", "comfy_api", "comfy_extras", "folder_paths", "nodes", "server", "modules", "launch"}
# What both hosts bring; anything else shared/ imports inside the function that needs it.
EVERYWHERE = {"torch", "torchvision", "numpy", "PIL", "safetensors"} | set(sys.stdlib_module_names)
HEAVY = {
    "torch", "torchvision", "facenet_pytorch", "diffusers", "transformers", "open_clip", "peft", "accelerate",
    "timm", "scipy", "cv2", "onnx", "onnxruntime", "matplotlib", "ot", "gradio",
}  # fmt: skip
HOST_PACKAGES = {
    "torch", "torchvision", "torchaudio", "numpy", "pillow", "scipy", "transformers", "tokenizers",
    "sentencepiece", "safetensors", "aiohttp", "pyyaml", "tqdm", "psutil", "einops", "kornia", "requests",
    "opencv-python", "pydantic", "gradio", "fastapi", "protobuf", "diffusers", "accelerate",
    "facenet-pytorch",
}  # fmt: skip

FILE_LIMIT, CLONE_LIMIT = 15_000_000, 54_000_000  # bytes
STATEMENT = re.compile(r"(licen[sc]es?|source|readme|model_card|notice)(\.(txt|md))?$", re.IGNORECASE)
LICENCE = re.compile(r"\b(MIT|CC0|CC[ -]BY|BSD|Apache|public domain|Unlicense|OpenRAIL)", re.IGNORECASE)


def repository_files() -> list[Path]:
    """Every file that is tracked or would be by `git add .`."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git clone")
    paths = {ROOT / name for name in listed.decode().split("\0") if name}
    return sorted(path for path in paths if path.is_file())


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(nodes: Iterator[ast.AST]) -> Iterator[tuple[str, int]]:
    """(top-level name, line) of each absolute import among the nodes."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0], node.lineno


def at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when a module is imported: not function bodies, not `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from at_import(node)


def is_program(tree: ast.Module) -> bool:
    return any(isinstance(n, ast.If) and ast.unparse(n.test) == "__name__ == '__main__'" for n in tree.body)


def program_folders() -> set[Path]:
    """Folders of files that are started, not imported, and reach the rest of the repository by its name."""
    found = (*sources("trainer", "studio"), ROOT / "tests" / "comfyui" / "make_workflows.py")
    trees = {path: parse(path) for path in found}
    return {
        path.parent
        for path, tree in trees.items()
        if is_program(tree) and "fair_adapter" in {name for name, _ in imports(ast.walk(tree))}
    }


# --- one import name ------------------------------------------------------------------------------------


def test_programs_find_the_root_under_its_import_name() -> None:
    """In one way: a module of that name beside them, which says where the repository is."""
    assert len(program_folders()) > 3
    program = "import fair_adapter, fair_adapter.shared.errors; print(*fair_adapter.__path__)"
    for folder in program_folders():
        result = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, cwd=folder, env=alone()
        )
        assert result.stdout.splitlines() == [str(ROOT)], f"{folder}: {result.stderr}"
    registers = 'sys.modules["fair_adapter"]'
    others = [path for path in sources("trainer", "studio", "shared") if registers in path.read_text("utf-8")]
    assert others == []


def alone() -> dict[str, str]:
    """The environment without a path of ours."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def test_programs_use_no_relative_imports() -> None:
    """A file that is started has no package, so that `from ..shared` fails in it."""
    for path in sources("trainer", "studio", "scripts", "a1111_extension"):
        tree = parse(path)
        relative = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level]
        assert not (is_program(tree) and relative), f"{path} is a program: relative imports at {relative}"


def test_own_folders_are_never_imported_by_bare_name() -> None:
    """Hosts and other extensions have folders of the same names: the first one loaded would win."""
    found = [
        f"{path}:{line} imports {name}"
        for path in [*sources(*OWN), *ROOT.glob("*.py")]
        for name, line in imports(ast.walk(parse(path)))
        if name in OWN
    ]
    assert found == []


# --- light imports --------------------------------------------------------------------------------------


def test_no_module_beside_a_program_hides_a_package() -> None:
    """Python puts a program's folder first on sys.path: `packaging.py` there broke diffusers once."""
    hidden = []
    for folder in program_folders():
        for module in folder.glob("*.py"):
            name = module.stem
            if name == "fair_adapter":
                continue  # this very name
            if name in sys.stdlib_module_names or importlib.util.find_spec(name) is not None:
                hidden.append(str(module.relative_to(ROOT)))
    assert not hidden, f"rename: {sorted(set(hidden))}"


def test_root_imports_as_comfyui_does_it_without_heavy_modules() -> None:
    program = """
import importlib.util, json, sys
path = sys.argv[1]  # ComfyUI names the module by its folder
spec = importlib.util.spec_from_file_location(path, path + "/__init__.py")
module = sys.modules[path] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(json.dumps(sorted(sys.modules)))
"""
    command = [sys.executable, "-c", program, str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    loaded = set(json.loads(result.stdout))
    assert str(ROOT) in loaded
    assert loaded & HEAVY == set()


def test_core_imports_no_host() -> None:
    found = [
        f"{path}:{line} imports {name}"
        for path in sources("shared")
        for name, line in imports(ast.walk(parse(path)))
        if name in HOSTS | {"gradio"}
    ]
    assert found == []


def test_core_loads_only_what_every_host_has() -> None:
    found = [
        f"{path}:{line} imports {name} when it is loaded"
        for path in sources("shared")
        for name, line in imports(at_import(parse(path)))
        if name not in EVERYWHERE
    ]
    assert found == []


def test_hosts_are_asked_for_no_package() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    rows = [line.partition("#")[0].strip() for line in lines]
    names = {re.split(r"[^A-Za-z0-9_.-]", row)[0].lower().replace("_", "-") for row in rows if row}
    assert names & HOST_PACKAGES == set()
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r"^dependencies = \[\]$", pyproject, re.MULTILINE)


def test_comfyui_registry_reads_the_table() -> None:
    """The fields of docs.comfy.org/registry/specifications: id, X.Y.Z, https addresses, a square icon."""
    tomllib = pytest.importorskip("tomllib", reason="part of Python since 3.11")
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project, comfy = table["project"], table["tool"]["comfy"]
    assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", project["name"]) and "comfyui" not in project["name"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"]) and project["description"]
    repository = project["urls"]["Repository"]
    assert re.fullmatch(r"https://github\.com/[\w-]+/[\w-]+", repository)
    assert comfy["PublisherId"] and comfy["DisplayName"]
    raw = repository.replace("github.com", "raw.githubusercontent.com") + "/main/"
    assert comfy["Icon"].startswith(raw)
    icon = (ROOT / comfy["Icon"].removeprefix(raw)).read_text(encoding="utf-8")
    assert icon.startswith('<svg xmlns="http://www.w3.org/2000/svg" width="400" height="400"')  # the largest


# --- the clone ------------------------------------------------------------------------------------------


def test_clone_stays_small() -> None:
    sizes = {path.relative_to(ROOT): path.stat().st_size for path in repository_files()}
    assert {str(path): size for path, size in sizes.items() if size > FILE_LIMIT} == {}
    assert sum(sizes.values()) <= CLONE_LIMIT


def test_history_stays_small() -> None:
    """Binary files are committed once: the compressed objects of all commits fit into the same limit."""
    repository_files()  # skips outside a clone
    objects = subprocess.run(["git", "rev-list", "--objects", "--all"], cwd=ROOT, capture_output=True).stdout
    names = b"\n".join(line.split(b" ")[0] for line in objects.splitlines()) + b"\n"
    command = ["git", "cat-file", "--batch-check=%(objectsize:disk)"]
    sizes = subprocess.run(command, cwd=ROOT, input=names, capture_output=True).stdout.split()
    assert sum(int(size) for size in sizes if size.isdigit()) <= CLONE_LIMIT


def is_binary(path: Path) -> bool:
    with path.open("rb") as file:
        return b"\0" in file.read(8192)


def test_every_binary_file_has_a_licence_statement_beside_it() -> None:
    """In its own folder or one above, below the repository root (whose LICENSE covers the code only)."""
    missing = []
    for path in repository_files():
        folders = [folder for folder in path.parents if ROOT in folder.parents]
        if not folders or path.relative_to(ROOT).parts[0] not in OWN or not is_binary(path):
            continue
        beside = (file for folder in folders for file in folder.iterdir())
        statements = (file.read_text(encoding="utf-8") for file in beside if STATEMENT.fullmatch(file.name))
        if not any(LICENCE.search(text) for text in statements):
            missing.append(str(path.relative_to(ROOT)))
    assert missing == []


def test_licence_is_mit() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert text.startswith("MIT License\n\nCopyright (c) 2026 Fair Adapter contributors\n")
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'license = { file = "LICENSE" }' in pyproject  # the form that ComfyUI's registry reads
    assert "License :: OSI Approved :: MIT License" in pyproject
