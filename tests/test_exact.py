"""Exact batches measured from end to end: every way draws, reads, counts and tells."""

import json
from pathlib import Path

import numpy as np
import pytest

from fair_adapter.shared.adapter_info import AdapterInfo
from fair_adapter.shared.adapter_target import TargetSpace
from fair_adapter.shared.attributes import TargetDistribution
from fair_adapter.shared.quota_batch import redraw_seed
from fair_adapter.shared.quota_steering import Steerer
from fair_adapter.shared.seeds import noise_seed
from fair_adapter.tests.tiny_pipeline import write_tiny_pipeline
from fair_adapter.trainer import evaluate
from fair_adapter.trainer.configuration.config import AdapterConfig
from fair_adapter.trainer.configuration.prompts import Prompt
from fair_adapter.trainer.evaluation.exact import BASE, WAYS, ExactBench
from fair_adapter.trainer.evaluation.measuring import Bench, Instruments
from fair_adapter.trainer.evaluation.readings import SALT, Plan
from fair_adapter.trainer.families.adaptation import Adaptation

SPACE = TargetSpace(TargetDistribution.parse("gender=50/50"), "cells", {"gender": {"female": (0.1, 0.9)}})
NURSE = Prompt("a nurse", "nurse", "test", None)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return write_tiny_pipeline(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def bench(pipeline):
    return Bench(pipeline, Instruments(independent=None, detector="fixed"), quiet=True)


@pytest.fixture(scope="module")
def adapter(bench):
    """Random soft tokens that follow gender."""
    adaptation = Adaptation.create(bench.model, SPACE, AdapterConfig(soft_tokens=2, text_lora=False))
    for i, parameter in enumerate(adaptation.parameters()):
        parameter.data = 0.5 + i + parameter.data
    return adaptation.to_adapter(AdapterInfo("tiny-fair", bench.model.describe("tiny"), SPACE))


def bench_of(bench, adapter, size=4, budget=3):
    return ExactBench(bench, adapter, SPACE.default, Plan(size, 3, 2.0), size, budget)


def test_every_way_keeps_its_budget_and_its_noises(bench, adapter):
    exact = bench_of(bench, adapter)
    seeds = [noise_seed("a nurse", i, SALT) for i in range(4)]
    for way in exact.ways():
        found = exact.draw(way, NURSE, 0)
        batch = found.batch
        assert batch.redrawn <= (3 if way.redraws else 0) and batch.seeds == tuple(seeds)
        assert found.decoded == (4 if way.second else 0)
        assert sum(batch.table()[i]["wanted"] for i in range(2)) == 4
        assert batch.exact or batch.redrawn == batch.budget
        assert found.readings.labels.shape[0] == 4 and found.similarity.shape == (4,)
        for order in batch.orders:
            assert order.seed == (
                redraw_seed(seeds[order.place], order.redraw) if order.redraw else seeds[order.place]
            )
    assert bench_of(bench, None).ways() == (BASE,)


def test_what_is_read_at_the_end_is_what_the_pictures_of_the_orders_show(bench, adapter):
    """Each picture that was kept, drawn alone from its order's seed and cell, reads the same."""
    exact, way = bench_of(bench, adapter, budget=4), WAYS[-1]
    found = exact.draw(way, NURSE, 1)
    for order in found.batch.orders:
        if order.before is None:
            _, alone, _ = exact._pictures(way, NURSE, [order])
            np.testing.assert_allclose(found.readings.faces[order.place], alone.faces[0], atol=1e-4)


def test_base_pictures_of_the_same_noises_are_alike_without_an_adapter(bench):
    found = bench_of(bench, None).draw(BASE, NURSE, 0)
    np.testing.assert_allclose(found.similarity, 1, atol=1e-4)


def test_the_program_writes_a_row_for_every_way(pipeline, bench, adapter, tmp_path, capsys):
    file = adapter.write(tmp_path / "adapter.safetensors")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a nurse\na pilot\n")
    options = f"--model {pipeline} --adapter {file} --exact 2 --images 4 --steps 2 --cap 2 --detector fixed"
    options += f" --independent none --prompts {prompts} --out {tmp_path} --target gender=50/50"
    assert evaluate.main(options.split()) == 0
    shown = capsys.readouterr().out
    report = json.loads((tmp_path / "exact.json").read_text())
    assert list(report["ways"]) == [way.name for way in WAYS]
    assert report["wanted"] == "gender female 1, male 1" and report["target"] == "gender=female:50,male:50"
    for name, table in report["ways"].items():
        assert table["batches"] == 4 and 1 <= table["cost"] <= 2 and len(table["ci95"]) == 2
        assert len(table["unreached"]) == 4 - round(4 * table["exact"]) and name in shown
        assert {"off gender", "exact", "all"} <= set(table["training"])
    assert report["ways"]["adapter"]["cost"] == 1 and report["ways"]["steered"]["decoded"] == 0
    assert report["ways"]["all"]["read"] == 2 * report["ways"]["all"]["cost"] + 2
    assert "exact batches [95%]" in shown


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--exact 0", "images: expected a whole number from 1 to 4096, found 0"),
        ("--exact 5 --images 12", "--exact: expected a divisor of the 12 pictures of a prompt, found 5"),
        ("--exact 4 --images 8 --target shoe=50/50", "unknown attribute 'shoe'"),
        ("--exact 4 --images 8 --cap .5", "--cap: expected 1 to 100 times the pictures, found 0.5"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once_in_one_line(options, said, capsys):
    assert evaluate.main(["--model", "/nowhere", *options.split()]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and told[0].startswith("error: ") and said in told[0]


def test_a_target_beyond_the_adapters_range_is_told_in_one_line(adapter):
    """Cells are asked for within the range all the same: the batch itself may be of women alone."""
    warnings = adapter.targets.resolve("gender=100/0").warnings
    assert warnings == ("gender female 100% is outside 10 to 90%, the range of training",)
    assert not adapter.targets.resolve(Steerer(adapter).weights({"gender": "female"}).target).warnings


def test_a_window_of_the_sampling_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["--exact", "4", "--window", "0", "40", "--out", str(tmp_path)]) == 2
    assert "--window: expected 0 100 with --exact" in capsys.readouterr().err
