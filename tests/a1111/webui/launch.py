"""What install.py of an extension may import; as a program, the start of a whole installation.

python launch.py [--api ...] --port PORT        (reads --port; the real ones know the other options)
"""

import argparse
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent


def is_installed(package):
    return importlib.util.find_spec(package) is not None


def run_pip(command, desc=None, live=False):
    subprocess.run([sys.executable, "-m", "pip", *command.split()], check=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", default="7860")
    port = parser.parse_known_args()[0].port
    forge = (ROOT / "modules_forge").is_dir()
    env = {**os.environ, "STANDIN_ROOT": str(ROOT), "STANDIN_FORGE": str(int(forge)), "PYTHONPATH": str(ROOT)}
    for script in sorted((ROOT / "extensions").glob("*/install.py")):
        subprocess.run([sys.executable, str(script)], env=env, cwd=ROOT, check=True)
    if forge:  # observed at its start, without any extension
        print("Traceback (most recent call last):\n  File \"joblib/externals/loky.py\", line 1, in <module>")
        print("ModuleNotFoundError: No module named 'joblib'", flush=True)
    os.execve(sys.executable, [sys.executable, str(ROOT / "webui.py"), port], env)


if __name__ == "__main__":
    main()
