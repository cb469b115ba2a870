"""Zero-shot attributes: wiring, on a tiny open_clip model with random weights.

Trained CLIP weights can't be shipped. These tests prove that prompts, scale, order and gradients are right,
and nothing about what CLIP makes of a face.
"""

import json
import math
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F

from fair_adapter.shared.attributes import AGE, GENDER, RACE4, Attribute
from fair_adapter.shared.classifiers import AttributeClassifier, load_classifier
from fair_adapter.shared.classifiers.zero_shot import ZeroShot, check_templates, described
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.faces import window

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
HAIR = {"hair": {"long hair": ["a person with long hair", "flowing hair"], "bald": ["a bald person"]}}
TEMPLATES = ("a photo of {}.", "{}")
FACES = torch.rand(3, 3, 256, 256, generator=torch.Generator().manual_seed(0))


def tiny_clip() -> open_clip.CLIP:
    torch.manual_seed(0)
    return open_clip.CLIP(**CONFIG).eval()


@pytest.fixture(scope="module")
def clip() -> open_clip.CLIP:
    return tiny_clip()


def tokenizer() -> open_clip.SimpleTokenizer:
    return open_clip.SimpleTokenizer(context_length=77)


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Name of the tiny architecture in open_clip's registry."""
    path = tmp_path_factory.mktemp("configs") / "tiny-clip-for-tests.json"
    path.write_text(json.dumps(CONFIG))
    open_clip.add_model_config(path)
    return path.stem


def test_logits_are_clips_scaled_cosines_of_averaged_prompts(clip: open_clip.CLIP) -> None:
    net = ZeroShot(clip, tokenizer(), HAIR, TEMPLATES, temperature=1.0)
    assert isinstance(net, AttributeClassifier)
    assert net.attributes == (Attribute("hair", ("long hair", "bald")),)
    logits = net(FACES)["hair"]
    with torch.no_grad():
        sentences = [
            [
                "a photo of a person with long hair.",
                "a person with long hair",
                "a photo of flowing hair.",
                "flowing hair",
            ],
            ["a photo of a bald person.", "a bald person"],
        ]
        text = [F.normalize(clip.encode_text(tokenizer()(s)), dim=-1).mean(0) for s in sentences]
        mean, std = torch.tensor(open_clip.OPENAI_DATASET_MEAN), torch.tensor(open_clip.OPENAI_DATASET_STD)
        pixels = (window(FACES, 0.5, 32) - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
        image = clip.encode_image(pixels)
        expected = (
            torch.stack([F.cosine_similarity(image, t[None]) for t in text], 1) / 0.07
        )  # CLIP's initial scale
    assert math.isclose(float(clip.logit_scale.exp()), 1 / 0.07, rel_tol=1e-5)
    assert torch.allclose(logits, expected, atol=1e-4)


def test_temperature_divides(clip: open_clip.CLIP) -> None:
    both = {**HAIR, "mood": {"happy": ["a happy person"], "sad": ["a sad person"]}}
    plain, by_name = (ZeroShot(clip, tokenizer(), both, temperature=t)(FACES) for t in (1.0, {"mood": 4.0}))
    assert torch.equal(plain["hair"], by_name["hair"])
    assert torch.allclose(plain["mood"] / 4, by_name["mood"])
    with pytest.raises(FairAdapterError, match="expected hair, mood, found mod"):
        ZeroShot(clip, tokenizer(), both, temperature={"mod": 2.0})
    with pytest.raises(FairAdapterError, match="positive"):
        ZeroShot(clip, tokenizer(), both, temperature=0.0)


def test_known_attributes_come_in_our_order(clip: open_clip.CLIP) -> None:
    net = ZeroShot(clip, tokenizer())
    assert net.attributes == (GENDER, RACE4, AGE)
    male_first = {"gender": {"male": ["a man"], "female": ["a woman"]}}
    female_first = {"gender": {"female": ["a woman"], "male": ["a man"]}}
    first, second = (ZeroShot(clip, tokenizer(), d) for d in (male_first, female_first))
    assert first.attributes == (GENDER,)
    assert torch.equal(first(FACES)["gender"], second(FACES)["gender"])
    assert first.identity == second.identity


def test_gradients_reach_the_image_and_no_weight(clip: open_clip.CLIP) -> None:
    net = ZeroShot(clip, tokenizer(), HAIR)
    faces = FACES.clone().requires_grad_(True)
    net(faces)["hair"][:, 1].sum().backward()
    assert faces.grad is not None and faces.grad.flatten(1).abs().sum(1).min() > 0
    assert not any(p.requires_grad for p in net.parameters())


def test_identity_follows_prompts_and_weights(clip: open_clip.CLIP) -> None:
    other = tiny_clip()
    with torch.no_grad():
        other.visual.conv1.weight[0, 0, 0, 0] += 1
    nets = [
        ZeroShot(clip, tokenizer(), HAIR, source="tiny"),
        ZeroShot(tiny_clip(), tokenizer(), HAIR, source="tiny"),
        ZeroShot(clip, tokenizer(), HAIR, TEMPLATES, source="tiny"),
        ZeroShot(other, tokenizer(), HAIR, source="tiny"),
    ]
    same, again, prompts, weights = (net.identity for net in nets)
    assert same == again and len({same, prompts, weights}) == 3
    assert same.startswith("zero_shot[tiny]:")


def test_local_weights_load_as_built(tiny_model: str, tmp_path: Path, clip: open_clip.CLIP) -> None:
    path = tmp_path / "weights.pt"
    torch.save(clip.state_dict(), path)
    net = load_classifier(f"zero_shot:{path}", model=tiny_model, descriptions=HAIR)
    assert torch.allclose(net(FACES)["hair"], ZeroShot(clip, tokenizer(), HAIR)(FACES)["hair"], atol=1e-5)
    assert net.identity.startswith(f"zero_shot[{tiny_model}/weights.pt]:")


@pytest.mark.parametrize("damage", ["missing", "text", "other"])
def test_bad_local_weights(tiny_model: str, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "weights.pt"
    if damage == "text":
        path.write_text("<html>")
    elif damage == "other":
        torch.save({"conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(FairAdapterError) as error:
        load_classifier("zero_shot", path, model=tiny_model, descriptions=HAIR)
    message = str(error.value)
    assert "\n" not in message and str(path) in message and "expected" in message


def test_weights_that_cannot_be_downloaded_name_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The suite is offline (HF_HUB_OFFLINE), as many workstations are."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))  # as if never downloaded
    with pytest.raises(FairAdapterError) as error:
        load_classifier("zero_shot", model="ViT-B-32", pretrained="laion2b_s34b_b79k")
    message = str(error.value)
    assert "\n" not in message and "laion2b_s34b_b79k" in message and "zero_shot:PATH" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "ViT-B-23"}, "did you mean 'ViT-B-32'"),
        ({"model": "ViT-B-32", "pretrained": "laion3b"}, "laion2b_s34b_b79k"),
        ({"model": "ViT-B-32", "pretrained": ""}, "expected a tag of ViT-B-32"),
    ],
)
def test_unknown_model_and_tag(options: dict[str, str], message: str) -> None:
    with pytest.raises(FairAdapterError) as error:
        load_classifier("zero_shot", **options)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "classes", "message"),
    [
        ("hair", {"long": ["long hair"]}, "at least two classes"),
        ("hair", {"long": ["long hair"], "short": []}, "class 'short'"),
        ("hair", {"long": "long hair", "short": ["short hair"]}, "found 'long hair'"),
        ("hair", {"long": ["long hair", " "], "short": ["short hair"]}, "class 'long'"),
        ("gender", {"female": ["a woman"], "male": ["a man"], "neither": ["a person"]}, "another name"),
        ("Hair", {"long": ["long hair"], "short": ["short hair"]}, "lower-case"),
    ],
)
def test_bad_descriptions(name: str, classes: dict[str, object], message: str) -> None:
    with pytest.raises(FairAdapterError) as error:
        described(name, classes)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("templates", [(), "a photo of {}.", ("a photo",), ("{} and {}",)])
def test_bad_templates(templates: object) -> None:
    with pytest.raises(FairAdapterError, match=r"one '\{\}' each"):
        check_templates(templates)
