"""Configuration: defaults, files, overrides, errors; prompts and targets that follow from it."""

import dataclasses
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fair_adapter.shared.attributes import GENDER, RACE, TargetDistribution
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.trainer.configuration.config import (
    Config,
    PromptSource,
    TargetConfig,
    differences,
    load_config,
    options,
)
from fair_adapter.trainer.configuration.prompts import (
    HELD_OUT,
    SETS,
    Schedule,
    evenly,
    read_prompts,
    training_sets,
)
from fair_adapter.trainer.configuration.settings import plain
from fair_adapter.trainer.evaluation.measuring import asked_encoders
from fair_adapter.trainer.families.stable_diffusion import StableDiffusion
from fair_adapter.trainer.training.targets import TargetDraw, target_space

OTHERS = ("sd", "zimage", "krea2")  # beginnings of the names of presets that are not for the portrait model
CONFIGS = Path(__file__).parents[1] / "trainer" / "configs"
BOTH = TargetDistribution.parse("gender=equal;race=equal")


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text("adapter: {soft_tokens: 5}\n" + text, encoding="utf-8")
    return path


# ---- settings


def test_defaults_are_the_papers(tmp_path):
    config = load_config(write(tmp_path, ""))
    assert config.optimizer.lr == 5e-5 and config.optimizer.images == 24 and config.optimizer.ema == 0.996
    assert config.sampling.steps == (19, 23) and config.model.guidance_scale is None
    assert StableDiffusion.guidance_scale == 7.5
    assert config.loss.semantics == 8 and not config.loss.changed and not config.loss.changed_face
    assert config.loss.face == 1 and config.loss.confidence == 0.8 and config.adapter.rank == 50


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_configurations_load_and_train_on_no_held_out_name(path):
    config = load_config(path)
    held_out = {p.name for name in HELD_OUT for p in read_prompts(PromptSource(name))}
    sets = training_sets(config.prompts.train)
    assert sets and not held_out & {p.name for prompts in sets for p in prompts}
    assert config.run.output != "runs/train"
    if not path.stem.startswith(OTHERS):
        assert config.model.path == "portrait" and config.model.guidance_scale is None
        target_space(config.target, TargetDistribution.parse(config.target.text))


def test_configurations_of_the_issue_are_there():
    names = {p.stem for p in CONFIGS.glob("*.yaml")}
    wanted = "soft_prompt lora_text lora_unet both joint age75 multi_concept target_conditioned demo"
    assert names >= set(wanted.split())
    assert len([name for name in names if name.startswith("sd15_exp")]) == 6


def test_the_papers_experiments_have_its_weights():
    """The table of its configuration files; those that the text names are the defaults."""
    weights = {  # semantics, face, certainty, iterations, images, race's factors
        "1_gender": (8, 1.0, 0.9, 10000, 24, None),
        "2_soft_prompt": (8, 1.0, 0.9, 10000, 24, None),
        "3_gender_race": (8, 0.1, 0.8, 15000, 32, (0.6, 0.3)),
        "4_age": (8, 0.1, 0.75, 15000, 40, (0.6, 0.3)),
        "5_concepts": (8, 0.1, 0.8, 15000, 40, (0.6, 0.3)),
        "6_race": (6, 0.1, 0.9, 12000, 32, (0.6, 0.3)),
    }
    for name, (semantics, face, certain, iterations, images, race) in weights.items():
        config = load_config(CONFIGS / f"sd15_exp{name}.yaml")
        loss, optimizer = config.loss, config.optimizer
        assert (loss.semantics, loss.face, loss.certain) == (semantics, face, certain), name
        assert (optimizer.iterations, optimizer.images, optimizer.lr) == (iterations, images, 5e-5), name
        found = (loss.changed["race"], loss.changed_face["race"]) if loss.changed else None
        assert found == race and loss.encoders == ("open_clip", "dinov2"), name
        assert config.model.scheduler == "DPMSolverMultistepScheduler" and config.sampling.steps == (19, 23)
        assert config.model.guidance_scale == 7.5 and optimizer.clip == 0, name


def test_stable_diffusion_is_measured_by_encoders_that_training_does_not_use():
    """The paper's for evaluation; what a configuration does not name is its loss's own."""
    for path in CONFIGS.glob("*.yaml"):
        config = load_config(path)
        asked = config.evaluation
        if path.stem.startswith(OTHERS):
            assert asked.encoders == ("open_clip_big", "dinov2_giant") and asked.clip == "open_clip_big"
            assert not set(asked.encoders) & set(config.loss.encoders), path
        else:
            assert asked_encoders(config) == ("embedded",) and asked.clip is None, path


def test_large_prompt_sets():
    """1,000 occupations, none of the 60 held out nor a part of their names; every prompt once."""
    sizes = {"occupations_large": 1000, "sports_large": 159, "descriptors_large": 60, "style_context": 167}
    held_out = {
        part
        for name in ("occupations_test", "occupations_validation")
        for p in read_prompts(PromptSource(name))
        for part in (p.name, *p.name.split(" and "))
    }
    for name, size in sizes.items():
        prompts = read_prompts(PromptSource(name))
        assert len({p.text for p in prompts}) == len({p.name for p in prompts}) == size, name
        assert not held_out & {p.name for p in prompts}
    assert read_prompts(PromptSource("occupations_large"))[0].text.startswith("a photo of the face of a ")
    portrait = {p.name for p in read_prompts(PromptSource("occupations_train"))}
    assert portrait <= {p.name for p in read_prompts(PromptSource("occupations_large"))}
    settings = ["occupations_large", "style_context", "descriptors_large", "sports_large"]
    schedule = Schedule([read_prompts(PromptSource(s)) for s in settings], [1, 1, 1, 3], 0)
    drawn = [schedule[i].prompt.set for i in range(600)]
    assert [drawn.count(s) for s in settings] == [100, 100, 100, 300]


def test_large_prompt_sets_hold_no_kind_of_what_is_held_out():
    """One has a held-out name as a word, or ends in it: table tennis, kickboxing."""
    occupations = ("occupations_test", "occupations_validation")
    sets = {
        "occupations_large": occupations,
        "sports_large": ("sports_test",),
        "descriptors_large": ("descriptors_test",),
        "style_context": (*occupations, "contexts_test"),
    }
    for name, held_out in sets.items():
        names = [re.escape(p.name) for source in held_out for p in read_prompts(PromptSource(source))]
        kind = re.compile("|".join(rf"\b{n}\b|{n}$" for n in names), re.IGNORECASE)
        assert [p.name for p in read_prompts(PromptSource(name)) if kind.search(p.name)] == [], name
        assert len(names) >= 4


def test_later_settings_win(tmp_path):
    path = write(tmp_path, "optimizer: {lr: 1.0e-3, images: 8}\nloss: {changed: {race: .6}}\n")
    config = load_config(path, ["optimizer.lr=2e-4", "loss.changed.gender=.3", "run.wandb=null"])
    assert config.optimizer.lr == 2e-4 and config.optimizer.images == 8 and config.run.wandb is None
    assert config.loss.changed == {"race": 0.6, "gender": 0.3}


def test_lists_and_nested_values(tmp_path):
    text = "prompts: {train: [{set: sports, weight: 2, templates: ['a {}']}]}\n"
    config = load_config(write(tmp_path, text), ["target.range={gender: {female: [.1, .9]}}"])
    assert config.prompts.train == (PromptSource("sports", 2.0, ("a {}",)),)
    assert config.target.range == {"gender": {"female": (0.1, 0.9)}}


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        ("optimiser: {lr: 1}", [], "'optimiser'; did you mean 'optimizer"),
        ("", ["optimizer.learning_rate=1"], "unknown key 'optimizer.learning_rate'"),
        ("", ["optimizer.iteration=9"], "did you mean 'optimizer.iterations'"),
        ("", ["lr=1e-4"], "did you mean 'optimizer.lr'"),
        ("", ["sampling.step=[1,2]"], "did you mean 'sampling.steps'"),
        ("", ["prompts.train=[{sett: sports}]"], "did you mean"),
        ("", ["optimizer.lr=fast"], "optimizer.lr: expected a number, found 'fast'"),
        ("", ["optimizer.images=2.5"], "optimizer.images: expected a whole number"),
        ("", ["adapter.text_lora=1"], "expected true or false"),
        ("", ["model.dtype=float8"], "expected one of float32, bfloat16, float16"),
        ("", ["sampling.steps=20"], "expected a list of 2"),
        ("", ["sampling.steps=[9, 3]"], "fewest <= most"),
        ("", ["optimizer.images=0"], "expected 1 or more, found 0"),
        ("", ["loss.confidence=1.5"], "expected 0 to 1"),
        ("", ["sampling.gradient_steps=50"], "at most the 19 steps"),
        ("", ["adapter.soft_tokens=0"], "nothing to train"),
        ("", ["prompts.train=[]"], "positive weight"),
        ("", ["optimizer.lr"], "expected key=value"),
        ("", ["optimizer=3"], "expected settings"),
        ("", ["run.name=[unclosed"], "does not read as YAML"),
        ("a: [", [], "expected YAML"),
        ("run: {seed: 1, seed: 2}", [], "there twice"),
        ("- 1", [], "expected"),
        ("", ["optimizer.betas=[2, 3]"], "optimizer.betas[0]: expected 0 or more and less than 1, found 2"),
        ("", ["optimizer.betas=[.9, 1]"], "optimizer.betas[1]: expected 0 or more and less than 1, found 1"),
        ("", ["optimizer.lr=.inf"], "optimizer.lr: expected a finite number, found inf"),
        ("", ["loss.changed={race: -1}"], "loss.changed.race: expected 0 to 1, found -1"),
        ("", ["target.range={gender: {female: [.1, .nan]}}"], "female[1]: expected a finite number"),
        ("", ["prompts.train=[{weight: .inf}]"], "prompts.train[0].weight: expected a finite number"),
        ("", ["optimizer.lr=1" + 400 * "0"], "optimizer.lr: expected a number, found a whole number of 1329"),
        ("", ["optimizer.lr=0x1" + 5000 * "0"], "found a whole number of 20001 bits"),
        ("", ["optimizer.images=" + 5000 * "9"], "does not read as YAML"),
        ("", ["run.name=2024-13-45"], "does not read as YAML"),
        ("", ["run.name=" + 5000 * "["], "does not read as YAML"),
        ("run: {name: 2024-13-45}", [], "expected YAML"),
        ("", ["model.size=100"], "model.size: expected a multiple of 64 px, found 100"),
        ("", ["optimizer.lr_factors={softt: 1}"], "expected soft, soft_target, lora or gate, found softt"),
    ],
)
def test_wrong_settings_are_one_clear_line(tmp_path, text, overrides, expected):
    with pytest.raises(FairAdapterError) as error:
        load_config(write(tmp_path, text), overrides)
    assert expected in str(error.value) and "\n" not in str(error.value)


def numbers(kind: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(key, "int" or "float", a setting that has it in its place as {}) of every number there can be."""
    hints = typing.get_type_hints(kind)
    for f in dataclasses.fields(kind):
        key, text = f"{prefix}{f.name}", str(hints[f.name])
        if dataclasses.is_dataclass(hints[f.name]):
            yield from numbers(hints[f.name], f"{key}.")
        elif "PromptSource" in text:
            yield f"{key}=[{{weight: {{}}}}]", "float"
        elif re.search("int|float", text) or hints[f.name] in (int, float):
            number = "int" if "int" in text else "float"
            pair, each = "[{}, {}]" if "tuple" in text else "{}", text.count("dict[")
            yield f"{key}={'{a: ' * each}{pair}{'}' * each}", number


@pytest.mark.parametrize(("setting", "number"), list(numbers(Config)))
def test_every_number_has_bounds(tmp_path, setting, number):
    """None reaches a model, a generator or an optimiser that can't take it."""
    path = write(tmp_path, "")
    beyond = ["-1", "-1000000", str(10**30)] if number == "int" else ["-1", "-.inf", ".inf", ".nan", "1e400"]
    for value in beyond:
        with pytest.raises(FairAdapterError, match="expected ") as error:
            load_config(path, [setting.replace("{}", value)])
        assert setting.partition("=")[0] in str(error.value) and "\n" not in str(error.value)


def test_numbers_are_all_found():
    found = {setting.partition("=")[0] for setting, _ in numbers(Config)}
    assert {"optimizer.betas", "target.range", "prompts.train", "model.size", "run.seed"} <= found
    assert len(found) > 40


def test_missing_file_names_the_shipped_ones(tmp_path):
    with pytest.raises(FairAdapterError, match=r"nowhere\.yaml.*soft_prompt\.yaml"):
        load_config(tmp_path / "nowhere.yaml")


def test_every_option_is_documented():
    rows = list(options())
    assert len(rows) > 60 and all(len(doc) > 10 for _, _, doc in rows)
    assert all(len(key.split(".")) == 2 for key, _, _ in rows)
    for key, default, _ in rows:
        section, name = key.split(".")
        assert plain(getattr(getattr(Config(), section), name)) == yaml.safe_load(default) or "e" in default


def test_differences_ignore_what_a_run_may_change(tmp_path):
    old = plain(load_config(write(tmp_path, "")))
    changed = ["run.name=other", "run.save_every=7", "optimizer.iterations=9", "run.output=x"]
    new = plain(load_config(write(tmp_path, ""), changed))
    assert differences(old, new) == []
    added = ("without", "empty_negative", "vae")
    before = {**old, "model": {key: value for key, value in old["model"].items() if key not in added}}
    assert differences(before, new) == []  # recorded when there were none of these settings
    other = plain(load_config(write(tmp_path, ""), ["optimizer.lr=1"]))
    assert differences(old, other) == ["optimizer.lr: 5e-05 was, 1.0 is asked for"]


# ---- prompts


def test_sets_of_prompts():
    for name in SETS:
        prompts = read_prompts(PromptSource(name))
        assert prompts and len({p.text for p in prompts}) == len(prompts)
    assert len(read_prompts(PromptSource("occupations_test"))) == 50
    assert len(read_prompts(PromptSource("occupations_validation"))) == 10
    assert len(read_prompts(PromptSource("occupations_train"))) >= 100
    for kind in ("sports", "descriptors", "contexts"):
        known = {p.text for p in read_prompts(PromptSource(kind))}
        held_out = {p.text for p in read_prompts(PromptSource(f"{kind}_test"))}
        assert (len(known), len(held_out)) == (10, 4) and not known & held_out
    off = read_prompts(PromptSource("off_template"))
    assert not {p.text for p in off} & {p.text for p in read_prompts(PromptSource("occupations_test"))}


def test_prompts_from_files(tmp_path):
    lines, table = tmp_path / "a.txt", tmp_path / "a.json"
    lines.write_text("# comment\nnurse\n\nnurse\n  baker \n", encoding="utf-8")
    table.write_text('{"prompts": ["a cat", "a dog"]}', encoding="utf-8")
    source = PromptSource(str(lines), 1.0, ("photo of a {}", "a {}"))
    assert [p.text for p in read_prompts(source)] == ["photo of a nurse", "a baker"]
    assert [p.text for p in read_prompts(PromptSource(str(table)))] == ["a cat", "a dog"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("empty.txt", b"\n# only a comment\n", "expected a prompt on each line, found none"),
        ("latin.txt", b"caf\xe9", "save it as UTF-8"),
        ("bad.json", b"{", "expected a prompt on each line or a JSON list"),
        ("table.json", b'{"words": 3}', "no list of texts"),
        ("missing.txt", None, "expected a file of prompts, found none"),
    ],
)
def test_wrong_prompt_files(tmp_path, name, content, expected):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FairAdapterError, match=expected):
        read_prompts(PromptSource(str(path)))


def test_unknown_set_template_and_held_out_training():
    with pytest.raises(FairAdapterError, match="did you mean 'sports'"):
        read_prompts(PromptSource("sport"))
    with pytest.raises(FairAdapterError, match="where the name goes"):
        read_prompts(PromptSource("sports", 1.0, ("no place",)))
    with pytest.raises(FairAdapterError, match="held out"):
        training_sets([PromptSource("occupations_test")])
    with pytest.raises(FairAdapterError, match="held out"):
        training_sets([PromptSource("sports_test")])


def test_schedule_keeps_weights_and_goes_through_every_prompt():
    sets = [read_prompts(PromptSource(name)) for name in ("sports", "descriptors")]
    schedule = Schedule(sets, [3.0, 1.0], seed=5)
    turns = [schedule[i] for i in range(4 * len(sets[0]))]
    counts = [sum(t.prompt.set == name for t in turns) for name in ("sports", "descriptors")]
    assert counts == [3 * len(sets[0]), len(sets[0])]
    for epoch in range(3):
        names = [t.prompt.name for t in turns if t.prompt.set == "sports" and t.epoch == epoch]
        assert sorted(names) == sorted(p.name for p in sets[0])
    again = Schedule(sets, [3.0, 1.0], seed=5)
    assert again[37] == turns[37] and again[2] == turns[2]
    assert [Schedule(sets, [3.0, 1.0], seed=6)[i] for i in range(20)] != turns[:20]


@given(st.integers(1, 60), st.integers(0, 80))
def test_evenly_keeps_order_and_number(count, limit):
    items = list(range(count))
    chosen = evenly(items, limit)  # type: ignore[arg-type]
    assert len(chosen) == (min(limit, count) if limit else count) and chosen == sorted(set(chosen))


# ---- targets


def space(**settings):
    return target_space(TargetConfig(**settings), BOTH)


def test_targets_stay_in_their_range_and_come_back():
    limits = {"gender": {"female": (0.1, 0.9)}, "race": {"black": (0.2, 0.3), "asian": (0.0, 0.5)}}
    draw = TargetDraw(space(vector="marginals", range=limits), 0.25, seed=3)
    targets = [draw[i] for i in range(200)]
    women = np.array([t.marginal("gender")[0] for t in targets])
    black = np.array([t.marginal("race")[1] for t in targets])
    drawn = np.array([t != BOTH for t in targets])
    assert 0.65 < drawn.mean() < 0.85
    assert women[drawn].min() >= 0.1 and women[drawn].max() <= 0.9 and women[drawn].std() > 0.15
    assert black[drawn].min() >= 0.2 and black[drawn].max() <= 0.3
    assert all(t.is_product for t in targets) and draw[7] == targets[7]


def test_joint_targets_and_fixed_ones():
    limits = {"gender*race": {"female*black": (0.3, 0.6)}}
    draw = TargetDraw(space(vector="cells", range=limits), 0.0)
    cell = [draw[i].marginal("gender", "race")[0, 1] for i in range(50)]
    assert min(cell) >= 0.3 and max(cell) <= 0.6 and not all(draw[i].is_product for i in range(5))
    assert TargetDraw(space())[11] == BOTH and BOTH.attributes == (GENDER, RACE)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"range": {"gender": {"female": (0.1, 0.9)}}}, "set target.vector"),
        ({"vector": "marginals"}, "expected the limits"),
        (
            {"vector": "marginals", "range": {"gender*race": {"female*black": (0, 1)}}},
            "set target.vector=cells",
        ),
        (
            {"vector": "marginals", "range": {"gender": {"female": (0.6, 0.9), "male": (0.6, 0.9)}}},
            "100% in all",
        ),
        ({"vector": "marginals", "range": {"gender": {"woman": (0.6, 0.9)}}}, "female, male"),
        ({"vector": "cells", "range": {"gender": {}, "gender*race": {}}}, "limited twice"),
    ],
)
def test_contradictory_target_settings(settings, expected):
    with pytest.raises(FairAdapterError, match=expected):
        TargetDraw(space(**settings))
