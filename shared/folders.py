"""Files of one kind that a host offers, of the user's own folder and of shipped ones, by their names.

A name is the path of a file below its folder, with "/" between folders, so that a name from the network can
be checked: it must lie inside one of the folders. Of files with one name the first folder's wins.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from glob import glob
from pathlib import Path, PurePosixPath

from .errors import FairAdapterError

_LISTED = 12  # names in an error message


class FileFolders:
    """Folders of files; the first is the user's. Folders that don't exist are empty.

    suffix: of the files, such as ".safetensors".  kind: what one is called in messages.
    """

    def __init__(self, folders: Sequence[Path | str], suffix: str, kind: str) -> None:
        self.folders = tuple(Path(folder) for folder in folders)
        self.suffix, self.kind = suffix, kind

    def names(self) -> list[str]:
        """All names, the user's before the shipped, each in alphabetical order."""
        found: dict[str, None] = {}
        for folder in self.folders:
            # glob and not rglob, which leaves linked folders out
            paths = (Path(name) for name in glob(f"**/*{self.suffix}", root_dir=folder, recursive=True))
            found |= dict.fromkeys(sorted(_shown(p) for p in paths if _is_file(folder / p)))
        return list(found)

    def path(self, name: str) -> Path:
        """The file of a name; its ending may be left out.

        Raises FairAdapterError for a name that leaves the folders or that none of them has.
        """
        plain = PurePosixPath(name.replace("\\", "/"))
        if not name.strip() or "\0" in name or plain.is_absolute() or ".." in plain.parts or ":" in name:
            raise FairAdapterError(
                f"{self.kind} {name[:100]!r}: expected a file name below the adapter folder; {self._choice()}"
            )
        for candidate in (plain, PurePosixPath(f"{plain}{self.suffix}")):
            for folder in self.folders:
                path = folder / candidate
                if candidate.suffix == self.suffix and _is_file(path):
                    return path
        names = self.names()
        if name in names:  # shown, and no file is called so
            raise FairAdapterError(
                f"{self.kind} {name[:100]!r}: expected a file name in UTF-8, found other bytes; rename the "
                "file"
            )
        stems = {other.removesuffix(self.suffix): other for other in names}
        near = difflib.get_close_matches(name.removesuffix(self.suffix), stems, n=1)
        hint = f"did you mean {stems[near[0]]!r}?" if near else self._choice()
        raise FairAdapterError(
            f"{self.kind} {name[:100]!r}: expected one of the {self.kind} files, found none; {hint}"
        )

    def _choice(self) -> str:
        names = self.names()
        if not names:
            return (
                f"put a {self.suffix} file into {self.folders[0]}" if self.folders else "there is no folder"
            )
        rest = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        return f"there are {', '.join(names[:_LISTED])}{rest}"


def version(path: Path) -> tuple[int, int]:
    """What changes with a file: its time in nanoseconds and its bytes. Raises FairAdapterError."""
    try:
        status = path.stat()
    except OSError as error:
        raise FairAdapterError(f"{path}: can't be read ({error.strerror}); check the file") from error
    return status.st_mtime_ns, status.st_size


def _shown(path: Path) -> str:
    """A name that a page and JSON can hold. Files whose names are no text (bytes that aren't UTF-8) are shown
    with question marks, a name that no file has: choosing them says so."""
    return path.as_posix().encode("utf-8", "replace").decode()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a folder that may not be entered, a name that is too long
        return False
