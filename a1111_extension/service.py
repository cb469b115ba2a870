"""Everything of the extension that outlives one generation: library, statistics, reader, last results."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..shared.adapter import FairnessAdapter
from ..shared.adapter_info import BaseModel
from ..shared.adapter_layout import AdapterOutline
from ..shared.attributes import KNOWN, STANDARD, Attribute, TargetDistribution, ordered
from ..shared.classifiers import RULER
from ..shared.errors import FairAdapterError
from ..shared.library import SHIPPED, AdapterLibrary
from ..shared.phrases import PhraseTables
from ..shared.presets import presets
from ..shared.reader import FaceReader
from ..shared.table_files import TableLibrary
from ..shared.target_table import TargetTable
from . import views
from .infotext import readable
from .monitor import LiveMonitor
from .options import FairOptions
from .records import RecordStore
from .request import NO_ADAPTER
from .scratch import Scratch

DATA = Path(__file__).resolve().parents[1] / "data"
UNLOADABLE = "sd3"  # architecture of models whose adapters the hosts' LoRA and embedding loaders can't take
TAKEN = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "sdxl": "Stable Diffusion XL"}
ADVISED = 6  # patterns of a table that are told
REMEMBERED = 200  # lines of the log
log = logging.getLogger("fair_adapter")


def check_host(adapter: FairnessAdapter, missing: Collection[str] = ()) -> None:
    """Raise FairAdapterError for an adapter that this webui can put onto no model.

    missing: architectures among `TAKEN` that it has no engine for.
    """
    base = adapter.info.base
    if base.architecture in missing:
        raise FairAdapterError(
            f"{adapter.source}: made for {base.name} ({base.architecture}), found a webui that does not run "
            f"{TAKEN[base.architecture]}; use AUTOMATIC1111, Forge, reForge or ComfyUI for it"
        )
    if base.architecture not in (*TAKEN, UNLOADABLE):
        raise FairAdapterError(
            f"{adapter.source}: made for {base.name} ({base.architecture}), expected one of "
            f"{', '.join(TAKEN)}: of other models the webuis' text encoders take no embedding by its name; "
            "use ComfyUI for it"
        )


def check_base(adapter: FairnessAdapter, base: BaseModel, missing: Collection[str] = ()) -> tuple[str, ...]:
    """As `FairnessAdapter.check_base`; refuses what the hosts' own loaders can't take as well.

    missing: as in `check_host`.
    """
    check_host(adapter, missing)
    if UNLOADABLE in (adapter.info.base.architecture, base.architecture):
        raise FairAdapterError(
            f"{adapter.source}: made for {adapter.info.base.name}, found {base.name}; adapters of Stable "
            "Diffusion 3 work in ComfyUI and diffusers alone, whose loaders take its LoRAs: use ComfyUI for "
            "them, and here a model and an adapter of Stable Diffusion 1.x, 2.x or XL"
        )
    return adapter.check_base(base)


class OnceFilter(logging.Filter):
    """Passes a line that is none of the last REMEMBERED ones: what fails at every picture need not be said at
    each, and lines with names and numbers in them must not fill the memory of a server."""

    def __init__(self) -> None:
        super().__init__()
        self.said: dict[str, None] = {}  # the line seen last stands last

    def filter(self, record: logging.LogRecord) -> bool:
        line = record.getMessage()
        fresh = line not in self.said
        self.said.pop(line, None)
        self.said[line] = None
        while len(self.said) > REMEMBERED:
            del self.said[next(iter(self.said))]
        return fresh


@dataclass(frozen=True)
class LastResult:
    """The last generation of a tab: the panel's HTML, and the same as JSON."""

    html: str = ""
    data: dict[str, Any] | None = None


class FairService:
    """library: adapters.  phrases: their tables.  records: past readings.  monitor: the live bars.
    scratch: downloads.  options: gives the settings in force.
    device: gives where "automatic" reads faces, such as "cuda".
    roots: folders of the program around us; where on this machine they lie is shown to nobody.
    missing: architectures that the webui does not run, see `check_host`.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        data: Path = DATA,
        options: Callable[[], FairOptions] = FairOptions,
        device: Callable[[], str] = lambda: "cpu",
        roots: Sequence[Path] = (),
        missing: Collection[str] = (),
    ) -> None:
        self.missing = frozenset(missing)
        self.library = AdapterLibrary([*folders, SHIPPED])
        self.phrases = PhraseTables(folders)
        self.tables = TableLibrary([*folders, SHIPPED])
        self.records = RecordStore(data / "statistics.sqlite")
        self.monitor = LiveMonitor()
        self.scratch = Scratch()
        self.options = options
        outer = [root for root in roots if root.is_absolute() and root != root.parent]
        private = (*self.library.folders, self.records.path.parent, *outer)
        self._private = sorted({str(folder) for folder in private}, key=len, reverse=True)
        self.last: dict[str, LastResult] = {}
        self._device = device
        self._readers: dict[tuple[str, str], FaceReader] = {}
        self._lock = threading.Lock()
        if not any(type(known).__name__ == OnceFilter.__name__ for known in log.filters):
            log.addFilter(OnceFilter())  # its class is another one after "Reload UI"

    def reader(self) -> FaceReader:
        """The face reader for the settings in force; weights are loaded when it first reads."""
        options = self.options()
        device = "cpu" if options.device == "CPU" else self._device()
        key = (f"default{RULER}" if options.skin_tone else "default", device)
        with self._lock:
            if key not in self._readers:
                self._readers = {key: FaceReader(*key)}
            return self._readers[key].with_options(certain=options.certain)  # the same nets

    def public(self, line: str) -> str:
        """A message without the folders of this machine: pictures, pages and answers are passed on."""
        for folder in self._private:
            line = line.replace(f"{folder}{os.sep}", "").replace(folder, Path(folder).name)
        return line

    def problem(self, error: Exception) -> str:
        """HTML of an error, for the page."""
        return views.message([self.public(str(error))], "error")

    def say(self, line: str) -> None:
        """Into the log, unless it was said just before."""
        log.warning("Fair Adapter: %s", line)

    # ---- what the widgets show

    def choices(self) -> list[str]:
        """Entries of the adapter menus."""
        return [NO_ADAPTER, *self.library.names()]

    def first_choice(self, own: bool = False) -> str:
        """What the menus start with: the first adapter that can be used.  own: of the user's folder alone."""
        names = self._own_names() if own else self.library.names()
        return next((name for name in names if not self.library.entry(name).error), NO_ADAPTER)

    def fitting_choice(self, base: BaseModel) -> str | None:
        """The first of the user's adapters that a loaded model takes; None if it takes none."""
        for name in self._own_names():
            summary = self.library.entry(name)
            if summary.error or summary.architecture != base.architecture:
                continue
            try:
                check_base(self.library.load(name), base, self.missing)
            except FairAdapterError:
                continue
            return name
        return None

    def _own_names(self) -> list[str]:
        """The shipped adapters are for the small portrait model, which no host has loaded."""
        return [name for name in self.library.names() if (self.library.folders[0] / name).is_file()]

    def adapter(self, name: str) -> FairnessAdapter | None:
        """The adapter of a menu entry; None for "None". Raises FairAdapterError as the library."""
        return None if name in ("", NO_ADAPTER) else self.library.load(name)

    def outline(self, name: str) -> AdapterOutline | None:
        """What the file of a menu entry tells without being loaded; None for "None". Raises as `adapter`."""
        return None if name in ("", NO_ADAPTER) else self.library.outline(name)

    def attributes(self, name: str) -> tuple[Attribute, ...]:
        """What there are sliders for: the adapter's attributes, or ours without one."""
        try:
            outline = self.outline(name)
        except FairAdapterError:
            return ()
        return tuple(ordered(STANDARD if outline is None else outline.targets.attributes))

    def presets(self, name: str) -> dict[str, TargetDistribution]:
        """Named targets of an adapter; none if it can't be read."""
        try:
            return presets(self.attributes(name), self.outline(name)) if self.attributes(name) else {}
        except FairAdapterError:
            return {}

    def default_target(self, name: str) -> str:
        """Text of the target that a freshly chosen adapter starts with."""
        try:
            outline = self.outline(name)
        except FairAdapterError:
            return ""
        default = outline.targets.default if outline else TargetDistribution.from_dict(
            {a.name: "equal" for a in STANDARD}, STANDARD
        )  # fmt: skip
        return readable(default)

    def target(self, name: str, text: str) -> TargetDistribution | None:
        """The target of a text for an adapter, over the attributes that it names; None for an empty text.

        Raises FairAdapterError for a text that does not read.
        """
        if not text.strip():
            return None
        return TargetDistribution.parse(text, self._nameable(name))

    def table(self, name: str, table: str) -> TargetTable:
        """A table of targets by prompt for an adapter. Raises FairAdapterError as TableLibrary.load."""
        return self.tables.load(table, self._nameable(name))

    def table_choices(self) -> list[str]:
        """Entries of the menu of tables."""
        return [NO_ADAPTER, *self.tables.names()]

    def _nameable(self, name: str) -> list[Attribute]:
        """What targets for an adapter may name: its attributes, then ours that it does not have."""
        own = {a.name: a for a in self.attributes(name)}
        return [*own.values(), *(a for a in KNOWN if a.name not in own)]

    def table_advice(self, name: str, table: str) -> str:
        """HTML: what a chosen table holds, or what is wrong with it; nothing without one."""
        if table in ("", NO_ADAPTER):
            return ""
        try:
            rows = self.table(name, table).rows
        except FairAdapterError as error:
            return self.problem(error)
        shown = ", ".join(row.pattern for row in rows[:ADVISED])
        more = f" and {len(rows) - ADVISED} more" if len(rows) > ADVISED else ""
        return views.message([f"{table}: {shown}{more}; the target above is for other prompts"], "info")

    def advice(self, name: str, text: str, base: BaseModel | None, table: str = "") -> str:
        """HTML: what is wrong or noteworthy with a choice, before anything is generated."""
        return self._advice(name, text, base) + self.table_advice(name, table)

    def _advice(self, name: str, text: str, base: BaseModel | None) -> str:
        try:
            adapter = self.adapter(name)
            if adapter is None:
                self.target(name, text)
                return views.message(["No adapter: faces are read and compared with the target."], "info")
            check_host(adapter, self.missing)
            notes = list(adapter.warnings if base is None else check_base(adapter, base, self.missing))
            notes += adapter.targets.resolve(text or None).warnings
        except FairAdapterError as error:
            return self.problem(error)
        summary = self.library.entry(name)
        about = f"{summary.title}: {summary.kind}, made for {summary.base}"
        return views.message(notes) + views.message([about], "info")
