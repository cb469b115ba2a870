"""Environments with a host's packages, an installation of the stand-in with the extension, a running server.

Environments are made once, in the clone's `.lab/` (which git passes over), from the package registry. torch
and what belongs to it are lent by the environment of the tests, as links: torch 2.1.2 with its CUDA libraries
is a download of 3 GB. FAIR_ADAPTER_TORCH=2.1.2 installs a host's own torch instead.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LAB = ROOT / ".lab"
STANDIN = Path(__file__).resolve().parent / "webui"
COMMON = ("httpx==0.24.1", "Pillow==9.5.0", "numpy==1.26.2", "setuptools==69.5.1", "safetensors==0.4.5")
PACKAGES = {
    "a1111": ("gradio==3.41.2", "fastapi==0.94.0", "pydantic==1.10.24", "huggingface_hub==0.25.2",
              "tokenizers==0.21.4", *COMMON),
    "forge": ("gradio==4.40.0", "fastapi==0.104.1", "pydantic==2.8.2", "huggingface_hub==0.26.2",
              "tokenizers==0.21.4", *COMMON),
}  # fmt: skip
LENT = (
    "torch", "torchgen", "torchvision", "functorch", "nvidia", "cuda", "triton", "sympy", "mpmath",
    "networkx",
)  # fmt: skip
REQUIRED = os.environ.get("FAIR_ADAPTER_REQUIRE_HOSTS") == "1"


class NotAvailable(Exception):
    """Why an environment can't be had here."""


def environment(kind: str) -> Path:
    """The interpreter of the environment with a host's packages. Raises NotAvailable with the reason."""
    if sys.version_info[:2] not in ((3, 10), (3, 11)):
        found = ".".join(map(str, sys.version_info[:2]))
        raise NotAvailable(f"the hosts' pins have wheels for Python 3.10 and 3.11, the tests run in {found}")
    torch_version = os.environ.get("FAIR_ADAPTER_TORCH", "")
    rows = [*PACKAGES[kind], *([f"torch=={torch_version}", "torchvision==0.16.2"] if torch_version else [])]
    folder = LAB / f"{kind}-{sys.version_info[0]}.{sys.version_info[1]}{'-torch' if torch_version else ''}"
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    stamp, wanted = folder / "complete.txt", hashlib.sha256("\n".join(rows).encode()).hexdigest()
    if not (stamp.is_file() and stamp.read_text() == wanted):
        LAB.mkdir(exist_ok=True)
        (LAB / ".gitignore").write_text("*\n")
        venv.create(folder, clear=True, with_pip=True)
        command = [str(python), "-m", "pip", "install", "--quiet", *rows]
        result = subprocess.run(command, capture_output=True, text=True, timeout=1500)
        if result.returncode != 0:
            raise NotAvailable(f"the package registry did not give {kind}'s packages: {result.stderr[-300:]}")
        stamp.write_text(wanted)
    if not torch_version:
        lend(python)
    return python


def lend(python: Path) -> None:
    """Links to the torch of the running interpreter, in the environment's site-packages."""
    site = next((python.parents[1]).glob("[lL]ib/**/site-packages"))
    source = Path(importlib.util.find_spec("torch").origin).parents[1]
    for entry in source.iterdir():
        package = entry.name.split("-")[0].lower()
        if package in LENT and not (site / entry.name).exists():
            (site / entry.name).symlink_to(entry)


def install_extension(root: Path) -> Path:
    """The repository as `extensions/fair-adapter` of an installation: what is written lands in the copy."""
    target = root / "extensions" / "fair-adapter"
    target.mkdir(parents=True)
    for name in ("a1111_extension", "scripts", "javascript"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("style.css", "install.py", "pyproject.toml", "__init__.py"):
        shutil.copy(ROOT / name, target / name)
    (target / "shared").symlink_to(ROOT / "shared", target_is_directory=True)
    return target


def make_installation(root: Path, extension: bool = True) -> Path:
    """A webui folder: the stand-in, the extension, empty folders for models."""
    shutil.copytree(STANDIN, root, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    for name in ("embeddings", "models/Lora", "models/fair_adapters", "extensions"):
        (root / name).mkdir(parents=True, exist_ok=True)
    if extension:
        install_extension(root)
    later = (
        root / "extensions" / "z-later" / "scripts"
    )  # scripts of extensions run in the order of their names
    later.mkdir(parents=True)
    shutil.copy(Path(__file__).parent / "later_script.py", later / "later.py")
    return root


def run_install(python: Path, root: Path) -> subprocess.CompletedProcess[str]:
    """install.py of the extension, as the hosts call it at every start."""
    script = root / "extensions" / "fair-adapter" / "install.py"
    env = {**environ(root, False), "PYTHONPATH": str(root)}
    return subprocess.run(
        [str(python), str(script)], capture_output=True, text=True, cwd=root, env=env, timeout=300
    )


def environ(root: Path, forge: bool, **more: str) -> dict[str, str]:
    """Process environment of the stand-in."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHONPATH", "GRADIO"))}
    own = {
        "STANDIN_ROOT": str(root), "STANDIN_FORGE": "1" if forge else "0",
        "STANDIN_PORTRAIT": str(ROOT / "shared" / "portrait"), "GRADIO_ANALYTICS_ENABLED": "False",
        "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "MPLCONFIGDIR": str(root / "tmp"),
        "GRADIO_TEMP_DIR": str(root / "tmp"),
    }  # fmt: skip
    return {**kept, **own, **more}


@dataclass
class Server:
    """A running webui: the stand-in, or a real installation."""

    url: str
    kind: str
    root: Path
    process: subprocess.Popen | None = None
    log: Path | None = None
    adapter: str = "gender-words.safetensors"  # of words, below models/fair_adapters

    def call(self, path: str, body: dict | None = None, headers: dict[str, str] | None = None) -> dict:
        """JSON answer of a route; an HTTP error comes back as {"status": code, ...}."""
        data = None if body is None else json.dumps(body).encode()
        kind = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, {**kind, **(headers or {})})
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            try:
                return {"status": error.code, **json.loads(text)}
            except ValueError:
                return {"status": error.code, "detail": text}

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(30)

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log else ""


def start(python: Path, root: Path, kind: str, timeout: float = 180, **more: str) -> Server:
    """Start the stand-in and wait until it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = root / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(python), str(root / "webui.py"), str(port)],
            stdout=out, stderr=subprocess.STDOUT, cwd=root, env=environ(root, kind == "forge", **more),
        )  # fmt: skip
    server = Server(f"http://127.0.0.1:{port}", kind, root, process, log)
    deadline = time.monotonic() + timeout
    while "ready http" not in server.said():
        if process.poll() is not None or time.monotonic() > deadline:
            server.stop()
            raise AssertionError(f"the stand-in did not start:\n{server.said()[-3000:]}")
        time.sleep(0.2)
    return server


# ---- a real installation

MARK = "fair-adapter-under-test"  # what we add there bears this name, and goes again
ADAPTER = Path("models", "fair_adapters", f"{MARK}.safetensors")
OPTIONS = ("--api", "--skip-torch-cuda-test", "--no-half", "--no-half-vae", "--disable-nan-check")


def add_extension(root: Path) -> None:
    """A link to this repository among the extensions, unless one of them, of any name, is Fair Adapter."""
    folder, ours = root / "extensions", Path("a1111_extension", "script.py")
    if any((entry / ours).is_file() for entry in folder.iterdir()):
        return
    (folder / MARK).unlink(missing_ok=True)  # of a run that was cut off, and leads nowhere now
    (folder / MARK).symlink_to(ROOT, target_is_directory=True)


def start_real(root: Path, timeout: float = 900) -> Server:
    """Start the webui in `root` with this extension and, on A1111, a small random model as its checkpoint.

    Its Python is FAIR_ADAPTER_WEBUI_PYTHON, or that of its venv. Forge needs a checkpoint of ordinary size
    and keeps its own.
    """
    if not (root / "launch.py").is_file():
        raise AssertionError(
            f"--webui={root}: expected the folder of AUTOMATIC1111 or Forge, found no launch.py"
        )
    forge = (root / "modules_forge").is_dir()
    from fair_adapter.tests.a1111.adapters import words_adapter

    words = words_adapter("gender-words", {"female": "teacher", "male": "engineer"})
    words.write(root / ADAPTER, overwrite=True)
    own = root / "venv" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    python = os.environ.get("FAIR_ADAPTER_WEBUI_PYTHON") or (str(own) if own.exists() else sys.executable)
    add_extension(root)
    command = [python, "launch.py", *OPTIONS]
    if not forge:
        from fair_adapter.tests.tiny_pipeline import write_random_portrait
        from fair_adapter.trainer.portrait.single_file import write_single_file

        checkpoint = root / "models" / "Stable-diffusion" / f"{MARK}.safetensors"
        with tempfile.TemporaryDirectory() as folder:  # the shipped portrait model's widths don't fit
            write_single_file(write_random_portrait(Path(folder)), checkpoint)
        command += ["--ckpt", str(checkpoint), "--use-cpu", "all"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = root / f"{MARK}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--port", str(port)], stdout=out, stderr=subprocess.STDOUT, cwd=root
        )
    server = Server(
        f"http://127.0.0.1:{port}", "forge" if forge else "a1111", root, process, log, ADAPTER.name
    )
    deadline = time.monotonic() + timeout
    while True:
        try:
            if "status" not in server.call("/sdapi/v1/progress"):
                return server
        except (urllib.error.URLError, OSError):
            pass  # not yet
        if process.poll() is not None or time.monotonic() > deadline:
            server.stop()
            clean_real(root)
            raise AssertionError(f"{root} did not start:\n{server.said()[-3000:]}")
        time.sleep(1)


def clean_real(root: Path) -> None:
    """Take what `start_real` added out again."""
    (root / "extensions" / MARK).unlink(missing_ok=True)
    models = root / "models" / "Stable-diffusion"
    exported = root / "embeddings" / "fair_adapters" / f"{MARK}.safetensors"
    for path in (*models.glob(f"{MARK}.*"), root / f"{MARK}.log", root / ADAPTER, exported):
        path.unlink(missing_ok=True)
    shutil.rmtree(models / f"{MARK}_text", ignore_errors=True)
