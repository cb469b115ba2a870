"""Evaluation over processes, the paper's measures, and several models on one page."""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch

from fair_adapter.shared.adapter import FairnessAdapter
from fair_adapter.shared.adapter_info import AdapterInfo, BaseModel
from fair_adapter.shared.adapter_target import TargetSpace
from fair_adapter.shared.attributes import AGE, GENDER, RACE, TargetDistribution
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.tests.a1111 import adapters
from fair_adapter.tests.tiny_pipeline import write_tiny_pipeline
from fair_adapter.trainer import compare, evaluate
from fair_adapter.trainer.configuration.config import AdapterConfig
from fair_adapter.trainer.configuration.prompts import Prompt
from fair_adapter.trainer.evaluation import command
from fair_adapter.trainer.evaluation import readings as module
from fair_adapter.trainer.evaluation.comparison import Column, Comparison
from fair_adapter.trainer.evaluation.measures import summarise
from fair_adapter.trainer.evaluation.readings import Readings
from fair_adapter.trainer.evaluation.report import Measured
from fair_adapter.trainer.evaluation.rows import kept_rows
from fair_adapter.trainer.families.adaptation import Adaptation
from fair_adapter.trainer.families.loading import load_model
from fair_adapter.trainer.instruments.encoders import ForeignEncoder, TextAlignment, load_text_alignment

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    return write_tiny_pipeline(tmp_path_factory.mktemp("tiny") / "pipeline")


@pytest.fixture(scope="module")
def adapter(pipeline, tmp_path_factory) -> Path:
    """A soft prompt of random numbers."""
    model = load_model(pipeline, "cpu", torch.float32)
    space = TargetSpace(TargetDistribution.parse("gender=50/50"))
    adaptation = Adaptation.create(model, space, AdapterConfig(soft_tokens=2))
    with torch.no_grad():
        for p in adaptation.parameters():
            p.normal_(generator=torch.Generator().manual_seed(1))
    info = AdapterInfo("tokens", model.describe("tiny"), space)
    return adaptation.to_adapter(info).write(tmp_path_factory.mktemp("adapter") / "tokens.safetensors")


def common(pipeline: Path, folder: Path) -> list[str]:
    options = {"model": pipeline, "detector": "fixed", "images": 2, "steps": 2, "limit": 3, "guidance": 2}
    options |= {"independent": "none", "encoder": "none", "cache": folder / "cache", "out": folder / "out"}
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


def test_an_adapter_of_another_kind_is_refused_before_anything_is_drawn(pipeline, adapter, tmp_path, capsys):
    file, ours = tmp_path / "other.safetensors", FairnessAdapter.read(adapter)
    replace(ours, info=replace(ours.info, base=BaseModel("SDXL", "sdxl"))).write(file)
    assert evaluate.main([*common(pipeline, tmp_path), "--adapter", str(file)]) == 2
    assert "sdxl" in capsys.readouterr().err.lower()
    assert compare.main([*common(pipeline, tmp_path), f"+{adapter}", f"+{file}"]) == 2
    assert compare.main([*common(pipeline, tmp_path), f"+{adapter}", "--strength", "nan"]) == 2
    assert not (tmp_path / "cache").exists()
    replace(ours, info=replace(ours.info, base=replace(ours.info.base, hash="others"))).write(file, True)
    capsys.readouterr()
    assert evaluate.main([*common(pipeline, tmp_path), "--adapter", str(file)]) == 0
    assert "other weights" in capsys.readouterr().err


def test_a_training_configuration_says_what_is_measured(pipeline, adapter, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    settings = f"model: {{path: {pipeline}, guidance_scale: 3, scheduler: DDIMScheduler}}\n"
    settings += "adapter: {soft_tokens: 2}\n"
    settings += "evaluation: {prompts: sports_test, limit: 1, images: 2, steps: 2}\n"
    config.write_text(settings, encoding="utf-8")
    here = ["--detector", "fixed", "--independent", "none", "--cache", str(tmp_path / "cache")]
    here += ["--out", str(tmp_path / "out"), "--config", str(config)]
    assert evaluate.main([*here, "--adapter", str(adapter), "--steps", "1"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["original"]["pictures"] == 2 and report["facts"]["prompts"].startswith("sports_test")
    assert "guidance scale 3, 1 steps" in report["facts"]["model"]
    assert compare.main([*here, f"+{adapter}"]) == 0
    given = command.with_config(evaluate.program(), ["--config", str(config)])
    assert (given.encoder, given.more_encoders, given.clip) == ("embedded", [], None)  # those of the loss
    config.write_text(
        settings.replace("evaluation: {", "evaluation: {encoders: [dinov2, embedded], clip: open_clip, "),
        encoding="utf-8",
    )
    given = command.with_config(evaluate.program(), ["--config", str(config)])
    assert (given.encoder, given.more_encoders, given.clip) == ("dinov2", ["embedded"], "open_clip")
    without = ["--encoder", "none", "--more-encoders", "--clip", "none"]
    assert evaluate.main([*here, "--adapter", str(adapter), *without]) == 0
    capsys.readouterr()
    assert evaluate.main(here) == 2  # no hub in the tests
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--more-encoders and --clip" in error and "loss.encoders" not in error
    config.write_text("model: {pat: x}", encoding="utf-8")
    capsys.readouterr()
    assert evaluate.main(here) == 2 and "did you mean" in capsys.readouterr().err


# ---- processes


def test_two_processes_share_the_prompts_and_merge_what_they_read(pipeline, tmp_path):
    (tmp_path / "two").mkdir()
    (tmp_path / "one").mkdir()
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    script = str(ROOT / "trainer" / "evaluate.py")
    done = subprocess.run(
        [sys.executable, *launch, script, *common(pipeline, tmp_path / "two"), "--device", "cpu"],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("wrote ") == 1 and "2/2" in done.stdout  # prompts 0 and 2; the other did one
    assert evaluate.main([*common(pipeline, tmp_path / "one"), "--device", "cpu"]) == 0
    two, one = (json.loads((tmp_path / n / "out" / "report.json").read_text()) for n in ("two", "one"))
    assert two["shares_by_prompt"] == one["shares_by_prompt"]
    for name, value in one["original"].items():  # a process group rounds the last bits differently
        assert alike(two["original"][name], value), name
    assert len(list((tmp_path / "two" / "cache").rglob("*.npz"))) == 3


def alike(found, expected) -> bool:
    """Equal but for the last digits of numbers."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(alike(found[k], v) for k, v in expected.items())
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(alike, found, expected))
    return found == (pytest.approx(expected, rel=1e-4) if isinstance(expected, float) else expected)


def test_a_stopped_evaluation_goes_on_where_it_was(pipeline, tmp_path, monkeypatch, capsys):
    read, prompts = module.Reader.read, []

    def stopped(self, model, prompt, plan, say):
        if len(prompts) == 2:
            raise KeyboardInterrupt
        prompts.append(prompt)
        return read(self, model, prompt, plan, say)

    monkeypatch.setattr(module.Reader, "read", stopped)
    assert evaluate.main(common(pipeline, tmp_path)) == 130
    assert "goes on from here" in capsys.readouterr().err and not (tmp_path / "out").exists()
    prompts.clear()
    assert evaluate.main(common(pipeline, tmp_path)) == 0
    assert len(prompts) == 1  # the third


# ---- the paper's measures


def of_prompt(features: np.ndarray, widths: list[int], texts: list[float]) -> Readings:
    n = len(features)
    return Readings(
        labels=np.zeros((n, 3), int),
        confidence=np.ones((n, 3)),
        judged=np.zeros((n, 0), int),
        faces=np.eye(n, 128),
        features=features,
        cues=np.zeros(n, int),
        boxes=np.ones((n, 4)),
        pictures=np.zeros((1, 8, 8, 3), np.uint8),
        widths=np.array(widths),
        texts=np.array(texts, np.float32),
    )


def test_several_encoders_and_the_text_are_figures_of_their_own():
    """Two encoders of widths 2 and 3: one sees no change, the other nothing alike."""
    before = of_prompt(np.array([[1.0, 0, 1, 0, 0], [0, 1, 0, 1, 0]]), [2, 3], [0.2, 0.4])
    after = of_prompt(np.array([[1.0, 0, 0, 1, 0], [0, 1, 0, 0, 1]]), [2, 3], [0.1, 0.3])
    prompts = [Prompt("a nurse", "nurse", "test", None)]
    attributes, names = (GENDER, RACE, AGE), ["clip", "dino"]
    figures = summarise([after], prompts, attributes, None, [before], encoders=names)
    assert figures["image_similarity"] == 1.0 and figures["image_similarities"] == {"clip": 1.0, "dino": 0.0}
    assert figures["clip_t"] == pytest.approx(0.2)
    base = summarise([before], prompts, attributes, encoders=names)
    assert base["image_similarities"] == {"clip": 1.0, "dino": 1.0}
    single = of_prompt(np.eye(2, 4), [], [])
    alone = summarise([single], prompts, attributes, encoders=["clip"])
    assert {"image_similarities", "clip_t"} & set(alone) == set()
    rows = {
        row.name: [figure and figure.value for figure in row.figures]
        for row in kept_rows([base, figures, alone])
    }
    similarities = {name: cells for name, cells in rows.items() if name.startswith("similarity")}
    first, second = (f"similarity to the original's pictures, {name}" for name in names)
    assert similarities == {first: [1.0, 1.0, None], second: [1.0, 0.0, None]}
    assert rows["CLIP similarity to the prompt"][:2] == pytest.approx([0.3, 0.2])
    [plain] = [row.figures for row in kept_rows([alone]) if row.name.startswith("similarity")]
    assert [figure.value for figure in plain] == [1.0]


def test_readings_of_before_these_measures_still_load(tmp_path):
    found = of_prompt(np.eye(2, 4), [4], [0.5, 0.5])
    module._save(tmp_path / "new.npz", found)
    assert module._load(tmp_path / "new.npz", 2).texts.tolist() == [0.5, 0.5]
    with np.load(tmp_path / "new.npz") as file:
        kept = {name: file[name] for name in file.files if name not in ("widths", "texts")}
    np.savez_compressed(tmp_path / "old.npz", **kept)
    old = module._load(tmp_path / "old.npz", 2)
    assert len(old.texts) == 0 and [f.shape for f in old.encoded()] == [(2, 4)]


def test_damaged_readings_and_those_of_other_numbers_are_read_again(tmp_path):
    """Every bit that is flipped is noticed, or changes nothing that is read (dates, for example)."""
    path, found = tmp_path / "kept.npz", of_prompt(np.eye(2, 4), [4], [0.5, 0.25])
    module._save(path, found)
    assert module._load(path, 3) is None and module._load(path, 2) is not None
    whole, refused = path.read_bytes(), 0
    for place in range(0, len(whole), 2):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place // 2 % 8)
        path.write_bytes(flipped)
        again = module._load(path, 2)
        refused += again is None
        if again is not None:
            for field in fields(Readings):
                assert np.array_equal(getattr(again, field.name), getattr(found, field.name)), place
    assert refused > len(whole) // 4
    path.write_bytes(whole[: len(whole) // 2])
    assert module._load(path, 2) is None


def test_clip_t_is_clips_own_cosine():
    config = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    torch.manual_seed(0)
    clip = open_clip.CLIP(16, config, text).eval()
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    aligned = TextAlignment(ForeignEncoder("tiny", clip.visual, 32, mean, std), clip, tokenizer)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        pixels = (images - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
        expected = torch.cosine_similarity(
            clip.encode_image(pixels), clip.encode_text(tokenizer(["a nurse"]))
        )
        assert torch.allclose(aligned(images, "a nurse"), expected, atol=1e-5)
        assert not torch.allclose(aligned(images, "a dog"), expected, atol=1e-5)
    with pytest.raises(FairAdapterError, match="did you mean 'open_clip'"):
        load_text_alignment("openclip")


# ---- side by side


def test_comparison_page(pipeline, adapter, tmp_path, capsys):
    arguments = [f"base={pipeline}", f"{pipeline}+{adapter}", *common(pipeline, tmp_path)]
    assert compare.main(arguments) == 0
    table = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    assert list(table["columns"]) == ["base", "tokens"]
    assert table["columns"]["tokens"]["target"] == "gender=female:50,male:50"
    assert table["columns"]["base"]["pictures"] == 6 and "not measured here" in table["published"]["note"]
    page = (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert len(sources) == 1 + 3 * 2 and all(s.startswith("data:image/") for s in sources)
    ours, theirs = page.split("Published figures, not measured here", 1)
    assert ".23±.16" in theirs and "±" not in ours and page.count("(published)") == 3
    assert f"{table['columns']['base']['gender']['bias']:.3f}" in ours
    output = capsys.readouterr().out
    assert all(text in output for text in ("base", "tokens", "to its base model", "few prompts"))
    change = table["columns"]["tokens"]["difference"]["gender"]
    two = [table["columns"][name]["gender"]["bias"] for name in ("base", "tokens")]
    assert change["bias"] == pytest.approx(two[1] - two[0])
    assert f"to its base {change['bias']:+.3f} [{change['ci95'][0]:+.3f}" in ours
    assert "2 models on the same 3 prompts and noises." in ours and "gender x race .25" in theirs
    assert "gender 1.00, race 0.67, age 1.00, gender x race 0.33." in theirs
    facts = table["facts"]
    assert facts["independent classifier"] == "none" and facts["computed in"] == "float32 on cpu"
    assert facts["models"] == f"base: {pipeline}; tokens: {pipeline} + {adapter}, strength 1"
    assert facts["prompts"] == "occupations_test, 3 prompts, 2 pictures of each"
    assert compare.main([str(pipeline), str(pipeline), *common(pipeline, tmp_path)]) == 2
    assert "name them with NAME=" in capsys.readouterr().err
    for ignored in (["--also", "no_person"], ["--adapter", "x"], ["--record"], ["--guidance", "2", "3"]):
        with pytest.raises(SystemExit):
            compare.main([f"+{adapter}", *common(pipeline, tmp_path), *ignored])
    capsys.readouterr()
    assert compare.main(["x=", *common(pipeline, tmp_path)]) == 2
    assert compare.main(["+nowhere.safetensors", *common(pipeline, tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_a_target_is_for_adapters_that_follow_one(pipeline, adapter, tmp_path, capsys):
    """A fixed one is warned about by name and keeps its own; a target outside the range is warned about."""
    arguments = [f"fixed=+{adapter}", *common(pipeline, tmp_path), "--target", "gender=75/25"]
    assert compare.main(arguments) == 0
    error = capsys.readouterr().err
    assert "warning: fixed: this adapter is trained for gender=female:50,male:50 alone" in error
    table = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    assert table["columns"]["fixed"]["target"] == "gender=female:50,male:50"
    following = adapters.words_adapter("any", {"female": "female", "male": "male"})
    assert compare.asked(following, "any", "gender=75/25").to_text() == "gender=female:75,male:25"
    assert capsys.readouterr().err == ""
    compare.asked(following, "any", "gender=97/3")
    assert "warning: any: gender female 97% is outside 10 to 90%" in capsys.readouterr().err


def column(name: str, shares: tuple[int, int], target: str | None, latents=(4, 8, 8)) -> Column:
    """A model that draws so many women and men, and its base model, which draws men alone."""
    features = np.eye(sum(shares), 4)
    base = of_prompt(features, [4], [])
    base = replace(base, labels=np.ones_like(base.labels))
    labels = base.labels.copy()
    labels[: shares[0], 0] = 0
    asked = None if target is None else TargetDistribution.parse(target)
    prompts = [Prompt("a nurse", "nurse", "test", None)]
    figures = summarise([replace(base, labels=labels)], prompts, (GENDER, RACE, AGE), asked, asked and [base])
    return Column(name, Measured(figures, [base]), asked, latents)


def comparison(*columns: Column) -> Comparison:
    prompts = [Prompt("a nurse", "nurse", "test", None)]
    return Comparison("x", prompts, (GENDER, RACE, AGE), columns, "x")


def test_unequal_targets_are_compared_with_the_base_model_at_the_same_target(capsys):
    table = comparison(
        column("base", (0, 40), None),
        column("equal", (20, 20), "gender=50/50"),
        column("asked", (30, 10), "gender=75/25"),
    )
    [row] = [row for row in table.skew() if row.what == "off target"]
    assert row.name == "gender" and row.cells[:2] == [None, None]
    cell = row.cells[2]
    assert cell.figure.value == 0 and cell.before == pytest.approx(0.75)
    assert cell.difference.value == pytest.approx(-0.75) and 0 < cell.floor < 0.1
    page = table.to_html()
    assert "off target" in page and f"floor {cell.floor:.3f}, base model 0.750" in page
    compare.print_summary(table)
    output = capsys.readouterr().out
    assert "gender off target" in output and "0.750" in output
    assert "off target" not in comparison(column("equal", (20, 20), "gender=50/50")).to_html()


def test_latents_of_other_shapes_share_no_noises():
    one, other = column("a", (1, 1), None), column("b", (1, 1), None, (4, 16, 16))
    assert comparison(one, replace(one, name="c")).lead().endswith("on the same 1 prompt and noises.")
    lead = comparison(one, other).lead()
    assert "a (4 x 8 x 8) and b (4 x 16 x 16)" in lead and "different noises" in lead
    assert "the same noises above" in comparison(one).to_html()
    assert "the same noises above" not in comparison(one, other).to_html()


def test_facts_of_several_models_are_one_text_where_they_agree():
    assert compare.one_text({"a": "7", "b": "7"}) == "7"
    assert compare.one_text({"a": "1", "b": "2"}) == "1 (a), 2 (b)"


def test_entries():
    entry = compare.Entry.parse("+runs/joint/adapter.safetensors", "portrait")
    assert (entry.name, entry.model) == ("joint", "portrait")
    entry = compare.Entry.parse("a=org/model+x/y.safetensors", "portrait")
    assert entry == compare.Entry("a", "org/model", Path("x/y.safetensors"))
    assert compare.Entry.parse("portrait", "other").adapter is None
