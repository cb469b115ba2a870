"""Running hosts: the stand-in under each gradio, or with `--webui=DIR` a real installation."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fair_adapter.tests.a1111 import adapters, lab

KINDS = ("a1111", "forge")


def host_python(kind: str) -> Path:
    """The interpreter of a host's environment; skips with the reason where it can't be had."""
    try:
        return lab.environment(kind)
    except lab.NotAvailable as reason:
        if lab.REQUIRED:
            raise
        pytest.skip(str(reason))


def put_adapters(folder: Path) -> None:
    """One adapter of every kind that the tests ask for, and some that can't be used."""
    folder.mkdir(parents=True, exist_ok=True)
    words = {"female": "teacher", "male": "engineer"}
    adapters.words_adapter("gender-words", words).write(folder / "gender-words.safetensors", overwrite=True)
    adapters.fixed_adapter("engineer", "engineer").write(folder / "engineer.safetensors", overwrite=True)
    adapters.random_adapter("random-both").write(folder / "random-both.safetensors", overwrite=True)
    adapters.foreign_adapter("foreign").write(folder / "foreign.safetensors", overwrite=True)
    first = adapters.foreign_adapter("abroad", adapters.BOTH)  # the first by name does not fit the model
    first.write(folder / "abroad.safetensors", overwrite=True)
    (folder / "damaged.safetensors").write_bytes((folder / "engineer.safetensors").read_bytes()[:700])


@pytest.fixture(scope="session", params=KINDS)
def webui(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[lab.Server]:
    """The stand-in with the extension, under gradio 3.41.2 and under 4.40.0."""
    python = host_python(request.param)
    root = lab.make_installation(tmp_path_factory.mktemp("installation") / request.param)
    put_adapters(root / "models" / "fair_adapters")
    installed = lab.run_install(python, root)
    assert installed.returncode == 0, installed.stderr
    server = lab.start(python, root, request.param)
    yield server
    server.stop()


@pytest.fixture
def webui_or_real(request: pytest.FixtureRequest) -> lab.Server:
    """A real installation if one was named, else the stand-in."""
    return request.getfixturevalue("real" if request.config.getoption("--webui") else "webui")


@pytest.fixture(scope="session")
def real(request: pytest.FixtureRequest) -> Iterator[lab.Server]:
    """The installation that `--webui=DIR` names, with the extension and the portrait model added to it."""
    root = Path(request.config.getoption("--webui")).expanduser().resolve()
    try:
        server = lab.start_real(root)
        yield server
        server.stop()
    finally:
        lab.clean_real(root)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The browser scenario runs in both stand-ins, or once in a real installation."""
    if "webui_or_real" in metafunc.fixturenames and not metafunc.config.getoption("--webui"):
        metafunc.fixturenames.append("webui")
        metafunc.parametrize("webui", KINDS, indirect=True, scope="session")
