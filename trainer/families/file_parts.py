"""The networks of a single-file checkpoint, and whether its header holds all of their tensors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, ModelMixin, UNet2DConditionModel

from ...shared.errors import FairAdapterError
from .header import NETWORK, Header
from .layout import Namer, clip_key, unet_namer, vae_namer

FIRST_STAGE = "first_stage_model."
TEXT_MODEL = "text_model."


def always(namer: Namer) -> Callable[[Mapping[str, Any]], Namer]:
    """Of names that do not depend on a configuration."""
    return lambda config: namer


@dataclass(frozen=True)
class FilePart:
    """A network of a checkpoint.

    folder: what diffusers calls it.  kind: its class.  prefix: of its tensors in the file.
    namer: from its configuration to the names of its tensors behind that prefix.
    absent: names of tensors that files may lack, as what they hold is known.
    tied: names of one tensor, of which files need have but one.
    small: settings that change nothing but the size of what `unsized` names, which is not compared.
    """

    folder: str
    kind: Any
    prefix: str
    namer: Callable[[Mapping[str, Any]], Namer]
    absent: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()
    small: tuple[tuple[str, int], ...] = ()
    unsized: tuple[str, ...] = ()

    def expected(self, config: str, local: bool, **changes: Any) -> Iterator[tuple[str, str, int]]:
        """(name in diffusers, name in a file, numbers) of its tensors; no memory is taken for them.

        config: diffusers folder or hub id.  local: it is a folder.  changes: of that configuration.
        """
        places: dict[str, Any] = {"subfolder": self.folder, "local_files_only": local}
        kind: Any = self.kind
        with torch.device("meta"):
            if issubclass(self.kind, ModelMixin):
                settings = {**kind.load_config(config, **places), **changes}
                model = kind.from_config({**settings, **dict(self.small)})
            else:
                settings = kind.config_class.from_pretrained(config, **places)
                model, settings = kind(settings), settings.to_dict()
        name = self.namer(settings)
        for key, value in model.state_dict().items():
            if not key.endswith("position_ids"):  # counts from 0 on, which some versions keep
                yield key, self.prefix + name(key), value.numel()

    def short(self, name: str) -> str:
        """A name in a file `without_text_model`."""
        return name.replace(self.prefix + TEXT_MODEL, self.prefix, 1)

    def check(self, header: Header, config: str, local: bool, **changes: Any) -> None:
        """Raises FairAdapterError for a tensor that the file lacks, has in another size or not as weights."""
        plain, needed = without_text_model(header, self), Counter[str]()
        for _, name, numbers in self.expected(config, local, **changes):
            needed[self.short(name) if plain else name] += numbers
        optional = {self.prefix + name for name in self.absent}
        if any(self.prefix + name in header.keys for name in self.tied):
            optional |= {self.prefix + name for name in self.tied}
        missing = [name for name in needed if name not in header.keys and name not in optional]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise FairAdapterError(
                f"{header.path}: expected all tensors of its {self.folder}, found none named "
                f"'{missing[0]}'{more}; download it again, or choose a file that is complete"
            )
        for name in needed.keys() & header.keys:
            found, sized = header.shapes[name], name.removeprefix(self.prefix) not in self.unsized
            if sized and math.prod(found) != needed[name]:
                raise FairAdapterError(
                    f"{header.path}: expected '{name}' of {needed[name]} numbers, as {config} has it, found "
                    f"{' x '.join(map(str, found)) or 'one'}; set model.config to the model that it was made "
                    "from"
                )
        header.check_kinds(needed.keys() & header.keys)


def without_text_model(header: Header, part: FilePart) -> bool:
    """Whether a CLIP's names lack `text_model.`, as in NovelAI's first files and what was made of them."""
    return header.has(f"{part.prefix}embeddings.") and not header.has(part.prefix + TEXT_MODEL)


def clip_part(folder: str, kind: Any, prefix: str, absent: tuple[str, ...] = ()) -> FilePart:
    """A text encoder that files hold as transformers does."""
    return FilePart(folder, kind, prefix, always(clip_key), absent)


UNET_PART = FilePart("unet", UNet2DConditionModel, NETWORK, unet_namer)
VAE_PART = FilePart("vae", AutoencoderKL, FIRST_STAGE, vae_namer)
