"""What install.py of an extension may import."""

import importlib.util
import subprocess
import sys


def is_installed(package):
    return importlib.util.find_spec(package) is not None


def run_pip(command, desc=None, live=False):
    subprocess.run([sys.executable, "-m", "pip", *command.split()], check=True)
