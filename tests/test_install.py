"""install.py: quick and harmless in a host's Python, and an environment of its own for people.

Hosts and package indexes are played by real virtual environments, the real pip and wheels of a few lines, so
that nothing is downloaded and every version that could be replaced is known.
"""

import ast
import os
import shutil
import signal
import subprocess
import sys
import venv
import zipfile
from functools import partial
from pathlib import Path

import pytest

from fair_adapter import install

ROOT = Path(__file__).resolve().parents[1]
FACENET_NEEDS = ("numpy (<1.26)", "torch (<2.1)")  # as the real one, bounds that the table breaks
POISON = "raise RuntimeError('install.py must not import this')\n"
TABLE = """
[project.optional-dependencies]
train = [
    "torch==2.12.*",  # a comment
    "torchvision==0.27.*",
    "tiny==1.0",
]
test = [
]
[tool.fair-adapter]
no-deps = [
    "facenet-pytorch==2.6.0",
]
"""
SAVES = """
import sys, time
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(1)  # longer than subprocess.call gives a program before it kills it
    print("saved")
    sys.exit(3)
"""
LISTENS = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
DEMO = """
import os, sys, tiny
print({"prefix": sys.prefix, "arguments": sys.argv[1:], "folder": os.getcwd(), "tiny": tiny.VERSION})
sys.exit(7)
"""


def make_wheel(folder: Path, name: str, version: str, source: str, needs: tuple[str, ...] = ()) -> Path:
    """A wheel with the one module `name`."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    metadata = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    metadata += [f"Requires-Dist: {need}" for need in needs]
    files = {
        f"{name}/__init__.py": source,
        f"{info}/METADATA": "\n".join(metadata) + "\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    return path


def environ(wheels: Path, **more: str) -> dict[str, str]:
    """An environment in which pip knows the wheels of one folder and no index."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    pip = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}
    return {**kept, **pip, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **more}


def run(
    *command: object, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(
        words, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=env, cwd=cwd, timeout=300
    )


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    make_wheel(folder, "facenet_pytorch", "2.6.0", "", FACENET_NEEDS)
    make_wheel(folder, "torch", "2.12.1", "")
    make_wheel(folder, "torchvision", "0.27.1", "")
    make_wheel(folder, "tiny", "1.0", "VERSION = '1.0'\n")
    make_wheel(folder, "tiny", "1.1", "VERSION = '1.1'\n")
    make_wheel(folder, "numpy", "1.20", "")  # bait: what facenet-pytorch's bounds ask for
    make_wheel(folder, "torch", "2.0", "")
    return folder


# --- in a host ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a host whose torch, torchvision and numpy fail when they are imported."""
    folder = tmp_path_factory.mktemp("host")
    venv.create(folder / "env", with_pip=True)
    site = next(folder.glob("env/[lL]ib/**/site-packages"))
    for name, version in (("torch", "2.1.2"), ("torchvision", "0.16.2"), ("numpy", "1.26.2")):
        with zipfile.ZipFile(make_wheel(folder, name, version, POISON)) as archive:
            archive.extractall(site)
    webui = folder / "webui"
    (webui / "modules").mkdir(parents=True)  # the start folder and PYTHONPATH of A1111's extensions
    return install.environment_python(folder / "env")


def frozen(python: Path, wheels: Path) -> set[str]:
    return set(run(python, "-m", "pip", "freeze", env=environ(wheels)).stdout.split())


def test_host_stays_as_it_is(host: Path, wheels: Path) -> None:
    """Whatever could be installed is offered; what is imported fails."""
    before = frozen(host, wheels)
    assert {"torch==2.1.2", "torchvision==0.16.2", "numpy==1.26.2"} <= before
    webui = host.parents[2] / "webui"
    result = run(host, ROOT / "install.py", cwd=webui, env=environ(wheels, PYTHONPATH=str(webui)))
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert frozen(host, wheels) == before


def test_python_without_torch_stays_as_it_is(tmp_path: Path, wheels: Path) -> None:
    venv.create(tmp_path / "env", with_pip=False)
    files = sorted(tmp_path.rglob("*"))
    result = run(install.environment_python(tmp_path / "env"), ROOT / "install.py", env=environ(wheels))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("\n") == 1 and "install.py demo" in result.stdout
    assert sorted(tmp_path.rglob("*")) == files


# --- an environment of our own --------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A clone with a short table and a demo that says where it runs."""
    folder = tmp_path / "a clone-with blanks"
    (folder / "trainer").mkdir(parents=True)
    shutil.copy(ROOT / "install.py", folder)
    (folder / "pyproject.toml").write_text(TABLE)
    (folder / "trainer" / "demo.py").write_text(DEMO)
    return folder


def run_demo(project: Path, wheels: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    poison = project.parent / "poison"
    (poison / "tiny").mkdir(parents=True, exist_ok=True)
    (poison / "tiny" / "__init__.py").write_text(POISON)
    environment = environ(wheels, PYTHONPATH=str(poison))
    command = (sys.executable, project / "install.py", "demo", *arguments)
    return run(*command, env=environment, cwd=project.parent)


def said(result: subprocess.CompletedProcess[str]) -> dict[str, object]:
    assert result.returncode == 7, result.stdout + result.stderr  # the demo's own exit status
    return ast.literal_eval(result.stdout.splitlines()[-1])


def test_environment_is_made_reused_updated_and_repaired(project: Path, wheels: Path, tmp_path: Path) -> None:
    first = said(run_demo(project, wheels, "steps=3", "x y"))
    assert first["arguments"] == ["steps=3", "x y"]
    assert Path(str(first["prefix"])).resolve() == (project / ".venv").resolve()
    assert Path(str(first["folder"])).resolve() == project.resolve()

    nothing = tmp_path / "nothing"
    nothing.mkdir()
    reused = run_demo(project, nothing)  # pip would fail here
    assert said(reused) and len(reused.stdout.splitlines()) == 1

    (project / "pyproject.toml").write_text(TABLE.replace("tiny==1.0", "tiny==1.1"))
    assert said(run_demo(project, wheels))["tiny"] == "1.1"

    (project / ".venv" / install.STAMP).unlink()  # as if it had been stopped while pip unpacked tiny
    site = next((project / ".venv").glob("[lL]ib/**/site-packages"))
    (site / "tiny-1.1.dist-info" / "RECORD").unlink()
    (site / "tiny" / "__init__.py").unlink()
    assert said(run_demo(project, wheels))["tiny"] == "1.1"

    interpreter = install.environment_python(project / ".venv")
    interpreter.unlink()  # as if the Python below it had been removed
    assert said(run_demo(project, wheels))["tiny"] == "1.1"


def test_without_network_one_line_and_the_same_command_goes_on(
    project: Path, wheels: Path, tmp_path: Path
) -> None:
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    offline = run_demo(project, nothing)
    assert offline.returncode == 2
    assert offline.stderr.startswith("error: ") and offline.stderr.count("\n") == 1
    assert "type the same command again" in offline.stderr
    assert said(run_demo(project, wheels))["tiny"] == "1.0"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_no_environment_is_left_alone(project: Path, wheels: Path, kind: str) -> None:
    path = project / ".venv"
    if kind == "folder":
        path.mkdir()
        path = path / "thesis.txt"
    path.write_text("mine")
    result = run_demo(project, wheels)
    assert result.returncode == 2
    assert str(project / ".venv") in result.stderr and result.stderr.count("\n") == 1
    assert path.read_text() == "mine"


def test_unknown_word_names_the_known_ones() -> None:
    result = run(sys.executable, ROOT / "install.py", "tset")
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "'tset'" in result.stderr and "demo" in result.stderr and "test" in result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX process groups")
@pytest.mark.parametrize("before", [signal.SIG_DFL, signal.SIG_IGN], ids=["terminal", "background"])
def test_ctrl_c_lets_the_program_save_and_end_by_itself(tmp_path: Path, before: signal.Handlers) -> None:
    """Wherever the tests run: what ignores SIGINT, as a background job or under nohup, hands that down, and
    Python then takes no notice of the signal either. The child listens again, as in a terminal."""
    program = tmp_path / "program.py"
    program.write_text(SAVES)
    shutil.copy(ROOT / "install.py", tmp_path)
    caller = f"{LISTENS}; import install, sys; sys.exit(install.call(sys.executable, {str(program)!r}))"
    process = subprocess.Popen(
        [sys.executable, "-c", caller],
        stdout=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, before),
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    rest, _ = process.communicate(timeout=60)
    assert (rest, process.returncode) == ("saved\n", 3)


# --- choices --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "machine", "gpu", "build"),
    [
        ("Linux", "x86_64", None, "cpu"),
        ("Linux", "aarch64", None, "cpu"),
        ("Linux", "x86_64", (580, 9.0), None),
        ("Linux", "aarch64", (580, 9.0), "cu130"),
        ("Linux", "x86_64", (550, 8.6), "cu126"),  # driver older than CUDA 13
        ("Linux", "x86_64", (580, 6.1), "cu126"),  # a GPU that CUDA 13 no longer knows
        ("Windows", "AMD64", None, None),
        ("Windows", "AMD64", (581, 8.9), "cu130"),
        ("Windows", "AMD64", (560, 8.9), "cu126"),
        ("Darwin", "arm64", None, None),
    ],
)
def test_torch_build_suits_the_machine(
    system: str, machine: str, gpu: tuple[int, float] | None, build: str | None
) -> None:
    index = install.torch_index(system, machine, gpu)
    assert (index and index.rsplit("/", 1)[1]) == build


def test_index_without_an_answer_is_not_reachable() -> None:
    assert not install.reachable("http://127.0.0.1:9/whl/cpu")  # the discard port: nobody listens


@pytest.mark.parametrize("version", [(3, 10), (3, 11), (3, 12), (3, 13)])
def test_supported_pythons(version: tuple[int, int]) -> None:
    install.check_python(version, "Linux", "x86_64")


@pytest.mark.parametrize(
    ("version", "system", "machine", "bits64", "named"),
    [
        ((3, 9), "Linux", "x86_64", True, "Python 3.9, expected 3.10 to 3.13"),
        ((3, 14), "Windows", "AMD64", True, "Python 3.14, expected 3.10 to 3.13"),
        ((3, 11), "Windows", "x86", False, "64-bit"),
        ((3, 11), "Darwin", "x86_64", True, "Intel"),
    ],
)
def test_other_pythons_are_named_with_the_remedy(
    version: tuple[int, int], system: str, machine: str, bits64: bool, named: str
) -> None:
    with pytest.raises(install.InstallError, match="install") as caught:
        install.check_python(version, system, machine, bits64)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("errors", "cause"),
    [
        ("ERROR: Could not install: [Errno 28] No space left on device", "the disk is full"),
        ("ERROR: Could not install: [Errno 13] Permission denied: '/x'", "no right to write there"),
        ("WARNING: Retrying: NewConnectionError\nERROR: No matching distribution for x", "no network"),
        ("WARNING: odd\nERROR: x has no wheel\n", "x has no wheel"),
        ("Traceback:\nModuleNotFoundError: No module named 'pip'", "No module named 'pip'"),
        ("", "without a word"),
    ],
)
def test_pip_failures_are_explained(errors: str, cause: str) -> None:
    assert cause in install.explain(errors)[0]
    assert "\n" not in " ".join(install.explain(errors))


def test_table_is_what_a_toml_parser_reads() -> None:
    tomllib = pytest.importorskip("tomllib", reason="part of Python since 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    assert install.requirements("train", "test") == extras["train"] + extras["test"]
    assert install.requirements("no-deps") == project["tool"]["fair-adapter"]["no-deps"]
    assert project["project"]["requires-python"] == f">={'.'.join(map(str, install.PYTHONS[0]))}"


def test_missing_table_is_an_error() -> None:
    with pytest.raises(install.InstallError, match=r"pyproject\.toml has no list 'trian'"):
        install.requirements("trian")


def test_old_pythons_can_read_it_far_enough_to_be_refused() -> None:
    ast.parse((ROOT / "install.py").read_text(encoding="utf-8"), feature_version=(3, 7))
