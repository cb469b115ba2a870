"""Zero-shot attributes by CLIP (open_clip): any attribute that can be described in words.

* A class is described by phrases ("a woman"); each goes through every template ("a photo of {}."). The
  class embedding is the normalised mean of the normalised text embeddings (Radford et al., "Learning
  Transferable Visual Models From Natural Language Supervision", ICML 2021, section 3.1.4).
* Logits are CLIP's own: cosine times its trained scale, divided by a temperature (default 1).
* The image encoder sees the whole aligned frame, which shows hair and surroundings too.

CLIP's classes are what captions of the web call people; check them with trainer/faces.py before training.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attributes import TABLE, Attribute
from ..errors import FairAdapterError, reason
from ..faces.alignment import PADDING, window
from ..quiet import quiet
from .base import ClassifierModule, temperatures

NAME = "zero_shot"
MODEL, PRETRAINED = "ViT-B-32", "laion2b_s34b_b79k"
TEMPLATES = ("a photo of {}.", "a portrait of {}.", "a close-up photo of the face of {}.")
Descriptions = Mapping[str, Mapping[str, Sequence[str]]]  # attribute -> class -> phrases
DESCRIPTIONS: Descriptions = {  # of a name with several lists of classes the last, which is the longest
    a.name: {label: look.phrases for label, look in zip(a.classes, a.looks)}
    for a in TABLE
    if all(look.phrases for look in a.looks)
}


class ZeroShot(ClassifierModule):
    """CLIP as classifier of described attributes.

    Args:
        clip: an open_clip model with `encode_image`, `encode_text` and `logit_scale`.
        tokenizer: list of texts -> token tensor of that model.
        descriptions: {attribute: {class: phrases}}; classes in the order of the logits.
        templates: texts with one ``{}`` for the phrase.
        temperature: divisor of CLIP's logits, for all attributes or by attribute; None takes the stored ones.
        source: what the weights are, part of the identity.

    Raises:
        FairAdapterError: an attribute with fewer than two classes, a class without phrases, a template
            without ``{}``, gender, race or age with other classes than ours.
    """

    clip: Any  # open_clip's classes share these methods, but no type
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        clip: nn.Module,
        tokenizer: Callable[[list[str]], Tensor],
        descriptions: Descriptions = DESCRIPTIONS,
        templates: Sequence[str] = TEMPLATES,
        temperature: float | Mapping[str, float] | None = None,
        source: str = "",
    ) -> None:
        attributes = tuple(described(name, classes) for name, classes in descriptions.items())
        check_templates(templates)
        scales = _temperatures(attributes, temperature)
        prompts = {a.name: [_fill(descriptions[a.name][c], templates) for c in a.classes] for a in attributes}
        super().__init__(NAME, _identity(clip, prompts, source), attributes, scales)
        self.clip = clip.float().eval().requires_grad_(False)
        self.size, mean, std = _preprocessing(clip)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        for name, classes in prompts.items():
            weights = torch.stack([self._embed(texts, tokenizer) for texts in classes])
            self.register_buffer(f"text_{name}", weights, persistent=False)
        self.eval()

    @torch.no_grad()
    def _embed(self, texts: list[str], tokenizer: Callable[[list[str]], Tensor]) -> Tensor:
        tokens = tokenizer(texts).to(self.clip.logit_scale.device)
        each = F.normalize(self.clip.encode_text(tokens), dim=-1)
        return F.normalize(each.mean(0), dim=-1)

    def raw_logits(self, faces: Tensor) -> dict[str, Tensor]:
        pixels = (window(faces, PADDING, self.size) - self.mean) / self.std
        image = F.normalize(self.clip.encode_image(pixels), dim=-1) * self.clip.logit_scale.exp()
        return {a.name: image @ getattr(self, f"text_{a.name}").T for a in self.attributes}


def load(
    path: Path | None = None,
    model: str = MODEL,
    pretrained: str = PRETRAINED,
    descriptions: Descriptions = DESCRIPTIONS,
    templates: Sequence[str] = TEMPLATES,
    temperature: float | Mapping[str, float] | None = None,
) -> ZeroShot:
    """A zero-shot classifier on open_clip's ``model``.

    Args:
        path: local weight file of that model; without one the tag ``pretrained`` is downloaded once.
        model: open_clip's name of the architecture.
        pretrained: open_clip's tag of the weights.
        descriptions, templates, temperature: as `ZeroShot`.

    Raises:
        FairAdapterError: open_clip is missing, an unknown model or tag, weights that cannot be had or do
            not load, or what `ZeroShot` raises.
    """
    open_clip = _open_clip()
    _check_names(open_clip, model, None if path else pretrained)
    if path is not None and not path.is_file():
        raise FairAdapterError(f"{path}: expected a weight file of {model}, found none; check the path")
    weights = pretrained if path is None else str(path)
    try:
        with quiet():
            clip = open_clip.create_model(model, pretrained=weights)
        tokenizer = open_clip.get_tokenizer(model)
    except Exception as error:  # hub clients and torch.load raise dozens of kinds, all of one meaning here
        raise FairAdapterError(
            f"{weights}: expected weights of open_clip's {model}, which do not load ({reason(error)}); "
            f"go online once, or download them elsewhere and pass '{NAME}:PATH' with model='{model}'"
        ) from error
    return ZeroShot(clip, tokenizer, descriptions, templates, temperature, f"{model}/{Path(weights).name}")


def described(name: str, classes: Mapping[str, Sequence[str]]) -> Attribute:
    """The attribute that the described classes make; gender, race and age must be ours, in our order."""
    attribute = Attribute(name, tuple(classes))
    if len(attribute) < 2:
        raise FairAdapterError(f"zero-shot {name}: expected at least two classes, found {', '.join(classes)}")
    for label, phrases in classes.items():
        words = [] if isinstance(phrases, str) else [p for p in phrases if isinstance(p, str) and p.strip()]
        if not words or len(words) < len(phrases):
            raise FairAdapterError(
                f"zero-shot {name}: expected a list of phrases for class {label!r}, found {phrases!r}; "
                f"describe it, for example ['a {label} person']"
            )
    known = [a for a in TABLE if a.name == name] or [attribute]
    for candidate in known:
        if set(candidate.classes) == set(attribute.classes):
            return candidate
    raise FairAdapterError(
        f"zero-shot {name}: expected the classes {' or '.join(', '.join(k.classes) for k in known)}, found "
        f"{', '.join(classes)}; give an attribute with other classes another name"
    )


def check_templates(templates: Sequence[str]) -> None:
    """Raises FairAdapterError unless every template has one ``{}``."""
    wrong = [t for t in templates if not isinstance(t, str) or t.count("{}") != 1]
    if isinstance(templates, str) or wrong or not templates:
        raise FairAdapterError(
            f"zero-shot templates: expected a list of texts with one '{{}}' each, found "
            f"{wrong or templates!r}; write for example ['a photo of {{}}.']"
        )


def _fill(phrases: Sequence[str], templates: Sequence[str]) -> list[str]:
    return [template.replace("{}", phrase.strip()) for phrase in phrases for template in templates]


def _temperatures(
    attributes: tuple[Attribute, ...], given: float | Mapping[str, float] | None
) -> Mapping[str, float]:
    if given is None:
        return temperatures(NAME, attributes)
    if isinstance(given, Mapping):
        names = [a.name for a in attributes]
        unknown = sorted(set(given) - set(names))
        if unknown:
            raise FairAdapterError(
                f"zero-shot temperature: expected {', '.join(names)}, found {', '.join(unknown)}"
            )
        return given
    return {a.name: float(given) for a in attributes}


def _preprocessing(clip: Any) -> tuple[int, Sequence[float], Sequence[float]]:
    """Input side in px, mean and standard deviation of RGB in [0, 1], as open_clip notes them on a model."""
    size = clip.visual.image_size
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise FairAdapterError(f"zero-shot: expected a model with square input, found {height}x{width} px")
    mean = getattr(clip.visual, "image_mean", None) or _open_clip().OPENAI_DATASET_MEAN
    std = getattr(clip.visual, "image_std", None) or _open_clip().OPENAI_DATASET_STD
    return height, mean, std


def _identity(clip: nn.Module, prompts: Mapping[str, list[list[str]]], source: str) -> str:
    """``zero_shot[source]:`` and twelve hex digits over weights and prompts."""
    digest = hashlib.sha256(repr(prompts).encode())
    for name, value in sorted(clip.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().float().numpy().tobytes())
    return f"{NAME}[{source}]:{digest.hexdigest()[:12]}"


def _check_names(open_clip: Any, model: str, pretrained: str | None) -> None:
    """Raises FairAdapterError for a model or tag that open_clip does not list."""
    if ":" in model:  # hf-hub:NAME, local-dir:PATH: open_clip looks there itself
        return
    if model not in open_clip.list_models():
        near = difflib.get_close_matches(model, open_clip.list_models(), n=1)
        hint = f"did you mean '{near[0]}'?" if near else "see open_clip.list_models()"
        raise FairAdapterError(f"zero-shot model '{model}': expected a model of open_clip; {hint}")
    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained is not None and pretrained not in tags:
        raise FairAdapterError(
            f"zero-shot weights '{pretrained}': expected a tag of {model} ({', '.join(tags) or 'it has none'}"
            f"), found another; or pass '{NAME}:PATH'"
        )


def _open_clip() -> Any:
    try:
        import open_clip
    except ImportError as error:
        raise FairAdapterError(
            f"{NAME}: expected the package open_clip, which does not import ({error}); pip install "
            "open_clip_torch"
        ) from error
    return open_clip
