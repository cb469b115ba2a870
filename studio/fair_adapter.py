"""The repository under its one import name, for the programs of this folder: Python looks beside them."""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[1])]
