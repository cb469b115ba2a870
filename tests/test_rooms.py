"""Which room may import from which: the arrows of the repository, read off the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = {
    path.stem
    for path in (ROOT / "trainer").glob("*.py")
    if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8")
}


def modules(path: Path) -> set[str]:
    """What a file imports of the repository, as paths from the root: "trainer/training/loop"."""
    found = set()
    folder = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        parts = (node.module or "").split(".") if node.module else []
        if node.level:
            parts = [*folder[: len(folder) - node.level + 1], *parts]
        elif parts[:1] == ["fair_adapter"]:
            parts = parts[1:]
        else:
            continue
        found |= {"/".join([*parts, alias.name]) for alias in node.names}
    return found


def arrows(room: str) -> dict[str, set[str]]:
    """file -> what it imports of the repository, of all files below a folder."""
    return {
        path.relative_to(ROOT).as_posix(): modules(path) for path in sorted((ROOT / room).rglob("*.py"))
    }


@pytest.mark.parametrize(
    ("room", "closed"),
    [
        ("shared", ("trainer", "studio", "comfy_nodes", "a1111_extension")),
        ("comfy_nodes", ("trainer", "studio", "a1111_extension")),
        ("a1111_extension", ("trainer", "studio", "comfy_nodes")),
        ("studio", ("comfy_nodes", "trainer/training", "trainer/evaluation")),
        ("trainer", ("studio", "comfy_nodes", "a1111_extension")),
        ("trainer/training", ("trainer/evaluation", "trainer/portrait")),
        ("trainer/evaluation", ("trainer/training", "trainer/portrait")),
        ("trainer/instruments", ("trainer/training", "trainer/evaluation", "trainer/portrait")),
        ("trainer/running", ("trainer/training", "trainer/evaluation", "trainer/families")),
        ("trainer/configuration", ("trainer/training", "trainer/evaluation", "trainer/portrait")),
        ("trainer/families", ("trainer/training", "trainer/evaluation")),
        ("trainer/portrait", ("trainer/training", "trainer/evaluation")),
    ],
)
def test_rooms_import_only_what_they_stand_on(room: str, closed: tuple[str, ...]) -> None:
    through = {"trainer/families/portrait.py"}  # by which the general trainer knows the portrait model
    wrong = [
        f"{file} imports {module}"
        for file, found in arrows(room).items()
        for module in found
        if file not in through and any(module.startswith(f"{name}/") for name in closed)
    ]
    assert wrong == []


def test_only_its_family_knows_the_portrait_world() -> None:
    own = ("trainer/portrait/", "trainer/families/portrait.py", "trainer/export.py", "trainer/benchmark_")
    wrong = [
        f"{file} imports {module}"
        for file, found in arrows("trainer").items()
        for module in found
        if not file.startswith(own) and module.startswith("trainer/portrait/")
    ]
    assert wrong == []


def test_no_program_is_imported_by_another_file() -> None:
    assert {"train", "evaluate", "demo", "compare"} <= PROGRAMS
    wrong = [
        f"{file} imports {module}"
        for room in ("trainer", "studio", "shared")
        for file, found in arrows(room).items()
        for module in found
        if module.split("/")[0] == "trainer" and module.split("/")[1] in PROGRAMS
    ]
    assert wrong == []
