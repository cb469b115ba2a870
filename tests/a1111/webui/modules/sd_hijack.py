import os
from types import SimpleNamespace

# Forge keeps the name and has no database in it.
model_hijack = SimpleNamespace()
if os.environ.get("STANDIN_FORGE") != "1":
    model_hijack.embedding_db = None
