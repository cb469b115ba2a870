"""Embeddings from files: A1111's one database, or Forge's in the text-processing engine.

Observed: exactly one tensor under any key (or clip_g + clip_l) makes an embedding, two make an error; a width
that is not the model's is skipped; Forge looks when a model is loaded and when it is told to.
"""

from pathlib import Path
from types import SimpleNamespace

from modules import sd_hijack, shared
from modules.portrait_model import EmbeddingTable
from safetensors.torch import load_file


class EmbeddingDatabase(EmbeddingTable):
    def load_from_file(self, path, filename):
        tensors = load_file(path)
        assert len(tensors) == 1, f"{path}: more than one tensor"
        (vectors,) = tensors.values()
        self.register(Path(filename).stem, vectors if vectors.dim() == 2 else vectors[None])

    def load_textual_inversion_embeddings(self, force_reload=False, sync_with_sd_model=True):
        for path in sorted(Path(shared.cmd_opts.embeddings_dir).rglob("*.safetensors")):
            self.load_from_file(str(path), path.name)


def attach(model):
    database = EmbeddingDatabase(model)
    database.load_textual_inversion_embeddings()
    if shared.FORGE:
        model.text_processing_engine = SimpleNamespace(embeddings=database)
        model.embeddings = database
    else:
        sd_hijack.model_hijack.embedding_db = database
        model.embeddings = database
