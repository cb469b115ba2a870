"""One real ComfyUI for all tests of this folder, the lab's or that of `--comfyui=DIR`, and a browser."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fair_adapter.tests.comfyui import lab as labs
from fair_adapter.tests.comfyui.adapters import write_all
from fair_adapter.tests.comfyui.client import Client

START = 600.0  # seconds: an end for a server that hangs, however busy the machine


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """An installation has one front end: what runs in each of the lab's runs in that one once."""
    folder, others = Path(__file__).parent, []
    for item in items:
        if folder in item.path.parents:
            item.add_marker(pytest.mark.comfyui)
            page = getattr(item, "callspec", None) and item.callspec.params.get("page")
            if page and page[0] != labs.FRONT_ENDS[0]:
                others.append(item)
    if config.getoption("--comfyui") is not None:
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]


def unavailable(error: labs.LabError) -> None:
    """A machine without network has no lab: skipped, or a failure where the hosts are required (CI)."""
    if labs.REQUIRED:
        pytest.fail(str(error))
    pytest.skip(str(error))


@pytest.fixture(scope="session")
def lab(pytestconfig: pytest.Config) -> labs.Lab:
    chosen = pytestconfig.getoption("--comfyui")
    try:
        found = labs.ready() if chosen is None else labs.installed(Path(chosen).expanduser().resolve())
    except labs.LabError as error:
        if chosen is not None:
            pytest.fail(str(error))
        unavailable(error)
    labs.add_packages(found)
    return found


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ComfyUI's folders: the pack as the registry ships it, test adapters, nothing else."""
    folder = tmp_path_factory.mktemp("comfyui")
    for name in ("custom_nodes", "models/fair_adapters", "input", "output", "temp", "user"):
        (folder / name).mkdir(parents=True)
    labs.install_pack(folder / "custom_nodes")
    write_all(folder / "models" / "fair_adapters")
    return folder


Start = Callable[[str], labs.Server]


@pytest.fixture(scope="session")
def start(lab: labs.Lab, base: Path) -> Iterator[Start]:
    """Starts a server with a front end, once for each: they share the folders but for what they write."""
    running: dict[str, labs.Server] = {}

    def server(front_end: str) -> labs.Server:
        if front_end not in running:
            folder = base if not running else _sibling(base, front_end)
            running[front_end] = labs.Server(lab, folder, _free_port(), front_end)
            end = time.monotonic() + START
            try:
                while not running[front_end].answers():
                    if time.monotonic() > end:
                        raise labs.LabError(f"ComfyUI did not start in {START:g} s")
                    time.sleep(0.2)
            except labs.LabError as error:
                pytest.fail(str(error))  # the lab is complete, so this is no missing network
        return running[front_end]

    yield server
    for each in running.values():
        each.stop()


def _sibling(base: Path, name: str) -> Path:
    folder = base.with_name(f"{base.name}_{name}")
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("output", "temp", "user", "server.log"))
    for each in ("output", "temp", "user"):
        (folder / each).mkdir()
    return folder


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def server(start: Start) -> labs.Server:
    return start(labs.FRONT_ENDS[0])


@pytest.fixture(scope="session")
def client(server: labs.Server) -> Client:
    return Client(server.url)


@pytest.fixture(scope="session")
def chromium() -> str:
    try:
        return labs.browser()
    except labs.LabError as error:
        unavailable(error)
        raise
