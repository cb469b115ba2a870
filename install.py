"""Set Fair Adapter up, in the Python of a host or in an environment of its own.

    python install.py                       for the hosts: AUTOMATIC1111 and Forge call it at every start,
                                            ComfyUI's Manager once. A host has all that is needed: nothing is
                                            added to its Python or changed there.
    python install.py demo [KEY=VALUE ...]  makes .venv, trains an adapter there and writes a report
    python install.py studio [OPTION ...]   makes .venv and opens the studio: generation without a webui
    python install.py test [PYTEST OPTION ...]  makes .venv, runs ruff, pyright and the tests there

What goes into .venv stands in pyproject.toml. Python 3.10 to 3.13 on Linux, Windows and macOS.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

# A host waits for this file at each start: what only people's commands need is imported where it is used.

ROOT = Path(__file__).resolve().parent
PYTHONS = ((3, 10), (3, 13))  # oldest and newest that every package of the table has wheels for
STAMP = "fair-adapter-complete.txt"  # in .venv; holds the fingerprint of the table that was installed
TORCH_INDEX = "https://download.pytorch.org/whl"
SIDE_BY_SIDE = ("-n", "auto", "--maxprocesses", "4")  # of pytest, see tests/conftest.py; `-n 0` undoes it
CUDA_13 = (580, 7.5)  # first driver and compute capability that a CUDA 13 build runs on

_CAUSES = (  # what pip says, what it means, what helps
    (("No space left on device", "not enough space on the disk"), "the disk is full", "free about 8 GB"),
    (
        ("Permission denied", "Access is denied", "Read-only file system"),
        "no right to write there",
        "make the folder writable",
    ),
    (
        ("name resolution", "NewConnectionError", "getaddrinfo", "Max retries", "timed out", "ProxyError"),
        "no network",
        "connect this machine or point pip at a mirror (PIP_INDEX_URL)",
    ),
)


class InstallError(Exception):
    """One line for the user: what failed, why, and the remedy."""


def requirements(*tables: str) -> list[str]:
    """The requirement strings of the named tables of pyproject.toml, in their order.

    Read by hand: tomllib came with Python 3.11, and a host's 3.10 must be able to run this file.
    """
    import re

    path = ROOT / "pyproject.toml"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InstallError(f"{path} can't be read ({error}): clone the repository again") from None
    rows: list[str] = []
    for table in tables:
        body = re.search(rf"^{table} = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
        if body is None:
            raise InstallError(f"{path} has no list '{table}': clone the repository again")
        rows += re.findall(r'^\s*"([^"]+)"', body[1], re.MULTILINE)
    return rows


# --- in a host's Python ---------------------------------------------------------------------------------


def greet() -> None:
    """Say to somebody who started this without a word, in a Python that is no host's, which words there are.

    A host has all that the adapters need: nothing is looked for, added or changed there.
    """
    if not find_spec("torch"):
        print(
            "Fair Adapter: this Python has no torch, so it is no host's and stays as it is. "
            "To run the project by itself: python install.py demo"
        )


# --- an environment of our own --------------------------------------------------------------------------


def explain(pip_errors: str) -> tuple[str, str]:
    """Cause and remedy, in a few words each, of a failed pip run, from what it wrote to stderr."""
    for signs, cause, remedy in _CAUSES:
        if any(sign in pip_errors for sign in signs):
            return cause, remedy
    lines = [line.strip() for line in pip_errors.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    cause = (errors or lines or ["pip stopped without a word"])[-1]
    return cause, "check the network and pip's settings (pip config list)"


def check_python(version: tuple[int, int], system: str, machine: str, bits64: bool = True) -> None:
    """Raise InstallError where the packages of the table have no wheels."""
    oldest, newest = (".".join(map(str, bound)) for bound in PYTHONS)
    if not PYTHONS[0] <= version <= PYTHONS[1]:
        found = ".".join(map(str, version))
        raise InstallError(
            f"this is Python {found}, expected {oldest} to {newest}: install Python 3.12 and call it by its "
            "name (python3.12 install.py ..., on Windows: py -3.12 install.py ...)"
        )
    if not bits64:
        raise InstallError("this is a 32-bit Python, which PyTorch doesn't support: install a 64-bit one")
    if system == "Darwin" and machine == "x86_64":
        raise InstallError(
            "PyTorch is no longer built for Intel Macs (on Apple silicon: install and use Python for arm64)"
        )


def nvidia_gpu() -> tuple[int, float] | None:
    """(driver's major version, lowest compute capability) of this machine's NVIDIA GPUs, None without one."""
    import subprocess

    query = ["nvidia-smi", "--query-gpu=driver_version,compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, errors="replace", timeout=30)
        rows = [line.split(",") for line in answer.stdout.splitlines() if line.count(",") == 1]
        if answer.returncode != 0 or not rows:
            return None
        return int(rows[0][0].split(".")[0]), min(float(capability) for _, capability in rows)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None


def torch_index(system: str, machine: str, gpu: tuple[int, float] | None) -> str | None:
    """Address of the index with the right torch build; None where the ordinary registry's build is right.

    The registry has CUDA 13 builds for Linux on x86_64 and CPU builds for Windows and macOS.
    """
    if system == "Darwin" or (system == "Windows" and gpu is None):
        return None
    if gpu is None:
        return f"{TORCH_INDEX}/cpu"
    if gpu[0] < CUDA_13[0] or gpu[1] < CUDA_13[1]:
        return f"{TORCH_INDEX}/cu126"
    return None if system == "Linux" and machine == "x86_64" else f"{TORCH_INDEX}/cu130"


def reachable(index: str) -> bool:
    """Whether a package index answers within a few seconds; pip itself would try for half a minute."""
    import urllib.request

    request = urllib.request.Request(f"{index}/torch/", method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=5):
            return True
    except OSError:  # URLError, HTTPError and time-outs are OSErrors
        return False


def environment_python(folder: Path) -> Path:
    """The interpreter of a virtual environment."""
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def works(python: Path) -> bool:
    """Whether an interpreter starts, has pip and is of a supported version."""
    import subprocess

    program = f"import pip, sys; sys.exit(not {PYTHONS[0]} <= sys.version_info[:2] <= {PYTHONS[1]})"
    command = [str(python), "-c", program]
    try:
        return subprocess.run(command, capture_output=True, env=clean_environ()).returncode == 0
    except OSError:
        return False


def clean_environ() -> dict[str, str]:
    """The process environment without what would let a host's packages into ours."""
    import os

    foreign = ("PYTHONPATH", "PYTHONHOME", "__PYVENV_LAUNCHER__")
    return {name: value for name, value in os.environ.items() if name not in foreign}


def build(folder: Path, python: list[str] | None = None) -> None:
    """Create the virtual environment, in place of a broken one if there is one.

    python: the command of another Python that is to make it.
    """
    import subprocess

    ours = not folder.exists() or (folder / "pyvenv.cfg").is_file()
    if not ours and not (folder.is_dir() and not any(folder.iterdir())):
        raise InstallError(f"{folder} is in the way and is no virtual environment: move it away")
    if python is None and not (find_spec("venv") and find_spec("ensurepip")):
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        raise InstallError(
            f"this Python has no venv module: install it (Debian and Ubuntu: sudo apt install "
            f"python{version}-venv) or call install.py with another Python"
        )
    command = [*(python or [sys.executable]), "-m", "venv", "--clear", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", env=clean_environ())
    if result.returncode != 0:
        cause, remedy = explain(result.stderr or result.stdout)
        raise InstallError(f"{folder} can't be made ({cause}): {remedy} and type the same command again")


def sweep(folder: Path) -> None:
    """Forget packages whose installation was cut off, so that pip installs them again.

    pip writes RECORD last; without it a package may lack files although its version looks satisfied.
    """
    import shutil

    for site in (*folder.glob("lib/python3*/site-packages"), folder / "Lib" / "site-packages"):
        for info in site.glob("*.dist-info"):
            if not (info / "RECORD").is_file():
                shutil.rmtree(info, ignore_errors=True)


def pip_install(python: Path, *arguments: str) -> None:
    """`pip install` in the environment: progress goes to the terminal, a failure becomes one line."""
    import subprocess

    quiet = () if sys.stdout.isatty() else ("--quiet",)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input"]
    command = [*pip, "install", *quiet, *arguments]
    result = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace", env=clean_environ())
    if result.returncode != 0:
        cause, remedy = explain(result.stderr)
        raise InstallError(
            f"the packages can't be installed ({cause}): {remedy} and type the same command again"
        )


def install_torch(python: Path, rows: list[str]) -> None:
    """Install torch and torchvision in the build that suits this machine."""
    import platform

    gpu = nvidia_gpu()
    index = torch_index(platform.system(), platform.machine(), gpu)
    if index is not None and not reachable(index):
        lost = "a larger download" if gpu is None else "the GPU may stay unused"
        print(f"{index} doesn't answer: torch comes from the package registry ({lost}).", flush=True)
        index = None
    pip_install(python, *rows, *(("--index-url", index) if index else ()))


def ready_environment(folder: Path) -> Path:
    """Make, complete or repair the virtual environment at `folder`; returns its interpreter.

    A stamp with the fingerprint of the dependency table says that it is complete: then nothing is run.
    """
    import hashlib
    import subprocess

    rows, alone = requirements("train", "test"), requirements("no-deps")
    fingerprint = hashlib.sha256("\n".join([*rows, "--no-deps", *alone]).encode()).hexdigest()
    stamp, python = folder / STAMP, environment_python(folder)
    complete = stamp.is_file() and stamp.read_text(encoding="utf-8", errors="replace") == fingerprint
    if works(python):
        if complete:
            return python
        print(f"Completing {folder} ...", flush=True)
        stamp.unlink(missing_ok=True)
        sweep(folder)
    else:
        print(f"Setting up {folder} (a few minutes, 2 to 6 GB) ...", flush=True)
        build(folder)
    torch_rows = [row for row in rows if row.startswith("torch")]
    if torch_rows:
        install_torch(python, torch_rows)
    pip_install(python, *rows)
    pip_install(python, "--no-deps", *alone)
    modules = [row.partition("==")[0].replace("-", "_") for row in (*torch_rows, *alone)]
    check = [str(python), "-c", f"import {', '.join(modules)}"]
    result = subprocess.run(check, capture_output=True, text=True, errors="replace", env=clean_environ())
    if result.returncode != 0:
        cause = explain(result.stderr)[0]
        raise InstallError(
            f"{folder} was set up but doesn't load ({cause}): delete it and type the same command again"
        )
    stamp.write_text(fingerprint, encoding="utf-8")
    return python


# --- commands -------------------------------------------------------------------------------------------


def call(*command: str | Path) -> int:
    """Run a program of ours from the repository root and return its exit status.

    On Ctrl-C the program has had the signal too: it saves and ends by itself, so wait for it.
    """
    import subprocess

    process = subprocess.Popen([str(part) for part in command], cwd=ROOT, env=clean_environ())
    while True:
        try:
            status = process.wait()
            return status if status >= 0 else 128 - status  # a signal, as shells number it
        except KeyboardInterrupt:
            continue


def demo(python: Path, arguments: list[str]) -> int:
    """Train an adapter for the portrait model and write runs/demo/report.html."""
    return call(python, ROOT / "trainer" / "demo.py", *arguments)


def studio(python: Path, arguments: list[str]) -> int:
    """Open the studio on the portrait model."""
    return call(python, ROOT / "studio" / "studio.py", *arguments)


def show_alias(python: Path) -> None:
    """Lay the folders out under the import name fair_adapter, in the environment, for pyright only.

    Programs register that name when they run, which a type checker can't see. Links, so that an editor opens
    the real file; copies on Windows, where a link needs a privilege.
    """
    import os
    import shutil

    package = python.parents[1] / "typing" / "fair_adapter"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    for folder in (ROOT / name for name in ("shared", "trainer", "studio", "a1111_extension", "comfy_nodes")):
        if folder.is_dir() and sys.platform != "win32":
            os.symlink(folder, package / folder.name, target_is_directory=True)
        elif folder.is_dir():
            shutil.copytree(folder, package / folder.name, ignore=shutil.ignore_patterns("*.safetensors"))


def test(python: Path, arguments: list[str]) -> int:
    """ruff, pyright, then pytest with `arguments`; all three run, the first failure's status is returned."""
    show_alias(python)
    call(python, ROOT / "tests" / "early.py")
    statuses = {
        "ruff": call(python, "-m", "ruff", "check", "."),
        "pyright": call(python, "-m", "pyright", "--pythonpath", python),
        "pytest": call(python, "-m", "pytest", *SIDE_BY_SIDE, *arguments),
    }
    failed = {name: status for name, status in statuses.items() if status}
    if failed:
        print(f"error: {', '.join(failed)} failed, see above", file=sys.stderr)
    return next(iter(failed.values()), 0)


def main(arguments: list[str]) -> int:
    commands = {"demo": demo, "studio": studio, "test": test}
    try:
        if not arguments:
            greet()
            return 0
        word, *rest = arguments
        if word in ("-h", "--help", "help"):
            print(__doc__)
            return 0
        if word not in commands:
            raise InstallError(
                f"unknown word '{word}': expected demo, studio or test, or none, as hosts call it"
            )
        import platform

        check_python(sys.version_info[:2], platform.system(), platform.machine(), sys.maxsize > 2**32)
        return commands[word](ready_environment(ROOT / ".venv"), rest)
    except InstallError as error:
        message = str(error)
    except OSError as error:
        message = f"{error.filename or ROOT}: {error.strerror or error}: make room or the folder writable"
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
