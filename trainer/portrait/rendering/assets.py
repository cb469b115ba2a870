"""Reads MakeHuman's assets as `sources.py` lays them out: base mesh, shape targets, fitted meshes,
pictures."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from ....shared.errors import FairAdapterError

_FOLDERS = (
    "head", "forehead", "eyebrows", "eyes", "nose", "mouth", "chin", "cheek", "ears", "neck",
    "macrodetails", "macrodetails/height", "macrodetails/proportions",
)


@dataclass
class Mesh:
    """Polygons with one texture coordinate for each corner."""

    vertices: np.ndarray  # float (n, 3), decimetres, y up, the face looks along z
    faces: list[list[int]]
    corners: list[list[int]]  # into uv
    uv: np.ndarray  # (m, 2)
    groups: dict[str, list[int]] = field(default_factory=dict)  # name -> face numbers


@dataclass
class Fitted:
    """A mesh that hangs on three vertices of the base mesh for each of its own."""

    mesh: Mesh
    anchors: np.ndarray  # int (n, 3)
    weights: np.ndarray  # (n, 3)
    offsets: np.ndarray  # (n, 3)
    scales: list[tuple[int, int, float]]  # x, y, z: two vertices of the base mesh and their distance there
    hides: np.ndarray  # vertices of the base mesh that it covers

    def on(self, base: np.ndarray) -> np.ndarray:
        """Its vertices (n, 3) on a shaped base mesh (v, 3)."""
        scale = [abs(base[a, k] - base[b, k]) / d for k, (a, b, d) in enumerate(self.scales)]
        return (base[self.anchors] * self.weights[..., None]).sum(1) + self.offsets * np.array(scale)


def read_obj(path: Path) -> Mesh:
    """A mesh from a Wavefront file: vertices, texture coordinates, groups, faces."""
    vertices, uv, faces, corners = [], [], [], []
    groups: dict[str, list[int]] = {}
    group = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        key, _, rest = line.partition(" ")
        if key == "v":
            vertices.append([float(x) for x in rest.split()[:3]])
        elif key == "vt":
            uv.append([float(x) for x in rest.split()[:2]])
        elif key == "g":
            group = rest.strip()
        elif key == "f":
            parts = [p.split("/") for p in rest.split()]
            groups.setdefault(group, []).append(len(faces))
            faces.append([int(p[0]) - 1 for p in parts])
            corners.append([int(p[1]) - 1 if len(p) > 1 and p[1] else 0 for p in parts])
    return Mesh(np.array(vertices), faces, corners, np.array(uv or [[0.0, 0.0]]), groups)


def _ranges(words: Sequence[str]) -> list[int]:
    """The numbers of "3 7 - 9 12"."""
    out: list[int] = []
    for k, word in enumerate(words):
        if word == "-":
            out.extend(range(out[-1] + 1, int(words[k + 1])))
        else:
            out.append(int(word))
    return out


def read_fitted(path: Path) -> Fitted:
    """A fitted mesh from MakeHuman's .mhclo."""
    scales: dict[str, tuple[int, int, float]] = {}
    rows: list[list[float]] = []
    hides: list[int] = []
    part = obj = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        words = line.split()
        if not words or line.startswith("#"):
            continue
        if words[0] in ("x_scale", "y_scale", "z_scale"):
            scales[words[0][0]] = (int(words[1]), int(words[2]), float(words[3]))
        elif words[0] == "obj_file":
            obj = words[1]
        elif words[0] in ("verts", "delete_verts", "weights"):
            part = words[0]
        elif words[0][0].isalpha():  # a setting between a heading and its rows
            continue
        elif part == "verts":
            rows.append([float(w) for w in words])
        elif part == "delete_verts":
            hides.extend(_ranges(words))
    n = len(rows)
    anchors, weights, offsets = np.zeros((n, 3), int), np.zeros((n, 3)), np.zeros((n, 3))
    for k, row in enumerate(rows):
        if len(row) == 1:
            anchors[k], weights[k, 0] = int(row[0]), 1
        else:
            anchors[k], weights[k], offsets[k] = [int(x) for x in row[:3]], row[3:6], row[6:9]
    hidden = np.array(hides, int)
    return Fitted(read_obj(path.parent / obj), anchors, weights, offsets, [scales[a] for a in "xyz"], hidden)


def _read_target(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with gzip.open(path, "rt") as lines:
        rows = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    moves = np.array([[float(x) for x in row[1:4]] for row in rows]).reshape(-1, 3)
    return np.array([int(row[0]) for row in rows], int), moves


class Assets:
    """The laid-out folder `root`; everything is read once and kept.

    Raises:
        FairAdapterError: a file is missing or damaged.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.fitted = cache(self._fitted)
        self.picture = cache(self._picture)
        self.bone_weight = cache(self._bone_weight)
        self.target = cache(self._target)

    def _path(self, name: str) -> Path:
        path = self.root / name
        if not path.is_file():
            raise FairAdapterError(
                f"{path}: expected a file of the portrait assets, found none; delete {self.root} and run "
                "the same "
                "command again"
            )
        return path

    @cached_property
    def base(self) -> Mesh:
        return read_obj(self._path("base/3dobjs/base.obj"))

    @cached_property
    def _targets(self) -> dict[str, Path]:
        folder = self.root / "base/targets"
        found = {
            p.name.removesuffix(".target.gz"): p for d in _FOLDERS for p in (folder / d).glob("*.target.gz")
        }
        for p in (folder / "expression/units").glob("*/*.target.gz"):
            found[f"expression/{p.parent.name}/{p.name.removesuffix('.target.gz')}"] = p
        return found

    def _target(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """(vertices, moves) of a shape target, None where MakeHuman has none of that name."""
        return _read_target(self._targets[name]) if name in self._targets else None

    def _fitted(self, kind: str, name: str) -> Fitted:
        return read_fitted(self._path(f"{kind}/{name}/{name}.mhclo"))

    def _picture(self, name: str, size: int = 512) -> np.ndarray:
        """RGBA float32 (size, size, 4) in 0..1, top row first."""
        from PIL import Image

        path = self._path(name if "." in name else f"pictures/{name}.png")
        try:
            with Image.open(path) as image:
                rgba = image.convert("RGBA").resize((size, size), Image.Resampling.BOX)
        except OSError as error:
            raise FairAdapterError(
                f"{path}: can't be read ({error}); delete {self.root} and run the same command again"
            ) from error
        return np.asarray(rgba, np.float32) / 255

    @cached_property
    def _bones(self) -> dict[str, list[tuple[int, float]]]:
        return json.loads(self._path("base/rigs/standard/weights.default.json").read_text("utf-8"))["weights"]

    def _bone_weight(self, *prefixes: str) -> np.ndarray:
        """For each vertex (v,) the summed weight of the bones whose names begin so."""
        total = np.zeros(len(self.base.vertices))
        for bone, pairs in self._bones.items():
            if bone.startswith(prefixes):
                for vertex, weight in pairs:
                    total[int(vertex)] += weight
        return np.clip(total, 0, 1)

    def joint(self, name: str) -> np.ndarray:
        """The vertices of a joint's cube; their mean is the joint."""
        mesh = self.base
        return np.unique([v for f in mesh.groups[f"joint-{name}"] for v in mesh.faces[f]])
