"""How large what an adapter file says may be.

Lists, pages and routes show what files say without asking again: whatever is read is within these, whatever
is larger is refused with the reason. They are far above what training writes (10 kB of text, two or three
attributes) and far below what takes a page a second.
"""

from __future__ import annotations

MAX_ENTRY = 2**20  # characters of the metadata entry, and so of every text and table in it
MAX_DEPTH = 16  # of lists and objects in each other
MAX_WHOLE = 2**64 - 1  # what JSON encoders agree on
MAX_NUMBER = 1e100
MAX_NAME = 300  # characters of a name or title
MAX_TEXT = 20_000  # of a description or licence
MAX_WIDTH = 2**20  # of a model's layer
MAX_PARTS = 16  # of a model, and rows of a table of figures
MAX_WORD = 64  # characters of an attribute's or class's name
MAX_ATTRIBUTES = 12
MAX_CLASSES = 256  # of one attribute
MAX_CELLS = 4096  # of the joint table of several
MAX_RANGES = 64  # attributes, or joint attributes, whose shares training drew
MAX_TABLE = 2**21  # characters of a table of targets
MAX_ROWS = 5000  # of it
MAX_PATTERN = 120  # characters of what a row is found by
