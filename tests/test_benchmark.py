"""The benchmark: its meters against known work, its methods against each other, its output."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.tests.rounding import float32_distance
from fair_adapter.tests.tiny_families import tiny
from fair_adapter.trainer import benchmark
from fair_adapter.trainer.benchmark_methods import bias, methods
from fair_adapter.trainer.benchmark_methods.memory import Meter, cost, peak_tflops, seconds
from fair_adapter.trainer.benchmark_methods.methods import EXACT, Workbench
from fair_adapter.trainer.benchmark_methods.models import build
from fair_adapter.trainer.benchmark_methods.results import Line, Measurement, plot, worst
from fair_adapter.trainer.instruments.encoders import EmbeddedEncoder

CPU = torch.device("cpu")


# ---- meters


def test_live_bytes_count_what_is_alive_once_and_no_weights():
    weights = torch.zeros(1000)
    with Meter([weights]) as live:
        a = torch.ones(1000)
        b = a.view(10, 100)[:5]
        c = weights + 1
        d = weights.view(10, 100)
        assert live.current == 2 * 4000 and d.shape == (10, 100)
        del c
        assert live.current == 4000
        del a
        assert live.current >= 4000  # b is a part of it
        del b
        assert live.current == 0
    assert live.peak == 2 * 4000


def test_live_bytes_see_what_a_graph_holds():
    """A chain of n tanh keeps n results for its backward pass, and one without graph keeps none."""
    weight = torch.ones(1, requires_grad=True)

    def chain(steps, graph):
        with torch.set_grad_enabled(graph):
            x = torch.ones(1000) * weight
            for _ in range(steps):
                x = torch.tanh(x)
            if graph:
                x.sum().backward()

    peaks = {}
    for steps in (10, 50):
        for graph in (False, True):
            peaks[steps, graph] = cost(partial(chain, steps, graph), CPU, [weight]).bytes
    assert peaks[50, True] - peaks[10, True] == 40 * 4000
    assert peaks[50, False] == peaks[10, False] <= 3 * 4000


def test_attention_counts_on_a_cpu_as_on_a_gpu():
    """4 B H S S D forward for both products, and backward 2.5 times as much (with the one recomputed)."""
    q = torch.randn(2, 3, 16, 8, requires_grad=True)

    def attend(backward):
        out = torch.nn.functional.scaled_dot_product_attention(q, q, q)
        if backward:
            out.sum().backward()

    forward, both = (cost(partial(attend, backward), CPU, []).tflop for backward in (False, True))
    assert forward == pytest.approx(4 * 2 * 3 * 16 * 16 * 8 / 1e12)
    assert both == pytest.approx(3.5 * forward)


def test_operations_and_time():
    a = torch.ones(64, 32)
    found = cost(lambda: a @ a.T, CPU, [a, a.view(-1)])
    assert found.tflop == pytest.approx(2 * 64 * 64 * 32 / 1e12)
    assert (found.bytes, found.allocated) == (4 * 64 * 64, 4 * 64 * (64 + 32))
    assert seconds(lambda: None, CPU) >= 0 and peak_tflops(CPU, torch.float32) > 0


def test_schedulers_stay_on_the_cpu_wherever_the_weights_are():
    model = build("medium", torch.device("meta"), torch.float32)
    assert model.device.type == "meta" and model.sampler(4).steps == 4


def test_nothing_is_compiled_under_the_meter_and_everything_after_it():
    torch._dynamo.reset()
    compiled = CompileCounter()
    double = torch.compile(lambda x: 2 * x, backend=compiled)
    cost(lambda: double(torch.ones(3)), CPU, [])
    assert compiled.frame_count == 0
    double(torch.ones(3))
    assert compiled.frame_count == 1


# ---- methods


@pytest.fixture(scope="module")
def bench():
    made = Workbench.build(tiny("sd1"), 2, 2, 4, "cpu", scale=2.0, rank=2)
    yield made
    made.close()


def test_methods_agree_where_they_should_and_nowhere_else(bench):
    found = {name: bench.work(name)() for name in bench.methods}
    assert all(torch.isfinite(g).all() and g.norm() > 0 for g in found.values())
    lines = {n: Line(m, (1.0,), 1, 2, 1.0, found[n]) for n, m in bench.methods.items()}
    measurement = Measurement("tiny", 2, 2, 4, 1.0, lines)
    for name in EXACT:
        assert measurement.gradient_error(name) < 1e-4, name
    assert torch.allclose(found["one_graph"], found["one_graph_cached"], rtol=1e-3, atol=1e-7)
    assert measurement.cosine("both_branches") == pytest.approx(1, abs=1e-5)
    for name in ("naive", "draft_1", "alignprop"):
        assert measurement.cosine(name) < 0.999, name
    both, one = found["one_graph"], found["one_graph_conditional"]
    assert float((both - one).norm() / both.norm()) > 1e-3


def test_every_loss_runs(bench):
    losses = bench.training.iterate(0).losses
    assert all(losses[name] > 0 for name in ("alignment", "semantics", "face")), losses


def test_references_are_cached_only_where_a_method_says_so(bench, monkeypatch):
    bank = bench.training.references
    drawn = []

    def draw(entry, first, last):
        drawn.append(entry)
        return original(entry, first, last)

    original = bank.draw
    monkeypatch.setattr(bank, "draw", draw)
    bench.work("cached")()
    before = len(drawn)
    for name in ("cached", "subset", "one_graph_cached"):
        bench.work(name)()
    assert len(drawn) == before
    for name in ("both_branches", "one_graph"):
        bench.work(name)()
    assert len(drawn) == before + 2


# ---- results


@pytest.fixture
def measurement(bench) -> Measurement:
    gradient = torch.tensor([1.0, 0.0])
    base = {
        "one_graph": 8.0,
        "one_graph_cached": 6.0,
        "one_graph_conditional": 7.0,
        "subset": 2.0,
        "cached": 3.0,
    }
    lines = {}
    for name, method in bench.methods.items():
        time = base.get(name, 4.0)
        size = 400 if "one_graph" in name else 100
        lines[name] = Line(method, (time, 2 * time, time), size, size + 50, 1.0, gradient)
    lines["subset"] = replace(lines["subset"], gradient=torch.tensor([1.0, 1.0]))
    sweep = {"x": [10.0, 20.0, 50.0], "both_branches": [2.0, 2.0, 2.1], "one_graph": [5.0, 9.0, 21.0]}
    return Measurement("portrait", 4, 4, 20, 2.0, lines, sweeps={"memory over steps": sweep})


def test_ratios_are_baseline_over_ours(measurement):
    ratios = measurement.ratios()
    assert set(ratios) == {"both_branches", "conditional", "cached", "subset"}
    assert ratios["both_branches"]["time"] == 2.0 and ratios["subset"]["time"] == 4.0
    assert (
        ratios["subset"]["time_cached_baseline"] == 3.0
        and "time_cached_baseline" not in ratios["conditional"]
    )
    assert ratios["cached"]["memory"] == 4.0 and ratios["cached"]["gradient_error"] == 0.0
    assert ratios["subset"]["cosine"] == pytest.approx(0.5**0.5) and "gradient_error" not in ratios["subset"]
    assert measurement.memory_growth == pytest.approx(0.05)
    slower = replace(measurement.lines["subset"], seconds=measurement.lines["both_branches"].seconds)
    slower = replace(measurement, lines={**measurement.lines, "subset": slower})
    assert worst([measurement, slower])["subset"]["time"] == 2.0
    assert plot([measurement])[:4] == b"\x89PNG" and plot([replace(measurement, sweeps={})]) is None


def test_program_writes_what_it_promises(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmark, "build", lambda name, device, dtype: tiny("sd1", dtype))
    out = tmp_path / "benchmark.json"
    arguments = ["--models", "medium", "--images", "1", "--steps", "2", "--rounds", "1", "--rank", "2"]
    monkeypatch.setattr(benchmark, "STEPS_SWEEP", (1, 2))
    assert benchmark.main([*arguments, "--device", "cpu", "--output", str(out)]) == 0
    table = json.loads(out.read_text())
    assert set(table["ratios"]) == {"both_branches", "conditional", "cached", "subset"}
    assert all({"time", "memory"} <= set(entry) for entry in table["ratios"].values())
    assert "memory_growth_10_to_50_steps" in table and table["command"].endswith(str(out))
    one = table["models"]["medium"]["methods"]["one_graph"]
    assert {
        "seconds_per_iteration",
        "images_per_second",
        "peak_bytes",
        "allocated_bytes",
        "tflop_per_second",
        "share_of_peak",
    } <= set(one)
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert "ours, both branches" in capsys.readouterr().out
    assert benchmark.main([*arguments, "--rounds", "0"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises(SystemExit, match="2"):
        benchmark.main(["--device", "cuda:1"])


def test_half_precision_is_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark, "build", lambda name, device, dtype: tiny("sd1", dtype))
    out = tmp_path / "benchmark.json"
    arguments = ["--models", "medium", "--images", "1", "--steps", "1", "--rounds", "1", "--rank", "2"]
    arguments += ["--device", "cpu", "--no-sweeps", "--dtype", "bfloat16", "--output", str(out)]
    arguments += ["--methods", *dict.fromkeys([*EXACT.values(), *EXACT])]
    assert benchmark.main(arguments) == 0
    ratios = json.loads(out.read_text())["ratios"]
    # The gradients are float32's throughout. Both ways have the same latents and dL/dz_0 to the last bit; the
    # U-Net then gets both branches in one call, or one by one, whose sums run in another order: on a CPU with
    # AVX2 alone 1.3e-4, with AVX-512 4e-5. This model's norms are of one channel each, of four values at the
    # lowest level, so that one rounding of each layer's result (u = 6e-8) moves the gradient by up to 500 u,
    # and the error of sums of up to 576 terms by up to 5,000 u: 3e-4 for one way, 6e-4 between two.
    alone = Workbench.build(tiny("sd1"), 1, 1, 1, "cpu", scale=7.5, rank=2)
    bounds = {name: float32_distance(alone, name) for name in ("both_branches", "conditional")}
    alone.close()
    bounds["cached"] = bounds["conditional"]
    assert all(ratios[name]["gradient_error"] < bounds[name] for name in EXACT)
    assert max(bounds.values()) < 1e-3  # what tells methods apart that are not the same: see above


def test_what_does_not_fit_is_said_and_left_out(monkeypatch, tmp_path, capsys):
    """A graph of all steps is too much: the lines of the others stay, without what they lack."""
    monkeypatch.setattr(benchmark, "build", lambda name, device, dtype: tiny("sd1", dtype))

    def large(*arguments, **options):
        raise torch.cuda.OutOfMemoryError("out of memory")

    monkeypatch.setattr(methods, "one_graph_iteration", large)
    out = tmp_path / "benchmark.json"
    arguments = ["--models", "medium", "--images", "1", "--steps", "1", "--rounds", "1", "--rank", "2"]
    arguments += ["--device", "cpu", "--output", str(out), "--no-sweeps", "--checkpoint", "all"]
    for dtype in ("float32", "bfloat16"):
        assert benchmark.main([*arguments, "--dtype", dtype]) == 0
        table = json.loads(out.read_text())
        known = table["models"]["medium"]
        assert list(known["methods"]) == ["both_branches", "conditional", "cached", "subset"]
        assert known["does_not_fit"][0] == "one_graph" and table["ratios"] == {}
        assert known["methods"]["cached"]["cosine"] is None
        assert capsys.readouterr().out.count("does not fit") == 6
    assert benchmark.main([*arguments, "--methods", "one_graph"]) == 2
    assert "out of memory; give a smaller --micro-batch" in capsys.readouterr().err


def test_encoders_of_the_papers_kind_take_their_place(monkeypatch):
    asked = []
    monkeypatch.setattr(
        methods, "papers_encoders", lambda device: asked.append(device) or [EmbeddedEncoder()]
    )
    made = Workbench.build(tiny("sd1"), 1, 1, 1, "cpu", scale=2.0, rank=2, encoders=("paper",))
    assert len(asked) == 1 and made.training.iterate(0).losses["semantics"] > 0
    made.close()


def test_no_micro_batch_is_halved_unseen(bench):
    def scarce(size):
        if size > 1:
            raise RuntimeError("CUDA error: out of memory")

    with pytest.raises(FairAdapterError, match="give a smaller --micro-batch"):
        bench.training.batches.fit("network", scarce, 2)
    bench.training.batches.sizes["network"] = 2


def test_time_to_bias_is_a_ratio_only_of_runs_that_arrived(monkeypatch):
    runs = iter([(10.0, True), (40.0, True), (10.0, True), (40.0, False), (0.0, True), (0.0, True)])

    def train(*arguments):
        seconds, reached = next(runs)
        return {"seconds": seconds, "reached": reached}

    monkeypatch.setattr(bias, "_train", train)
    assert [bias.time_to_bias("cpu", print)["share"] for _ in range(3)] == [0.25, None, None]


def test_chosen_methods_are_measured_alone(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmark, "build", lambda name, device, dtype: tiny("sd1", dtype))
    out = tmp_path / "benchmark.json"
    arguments = ["--models", "medium", "--images", "1", "--steps", "1", "--rounds", "1", "--rank", "2"]
    arguments += ["--device", "cpu", "--output", str(out), "--methods"]
    assert benchmark.main([*arguments, "cached"]) == 0
    table = json.loads(out.read_text())
    assert list(table["models"]["medium"]["methods"]) == ["cached"] and table["ratios"] == {}
    assert table["memory_growth_10_to_50_steps"] is None and "1 images" not in capsys.readouterr().out
    assert not out.with_suffix(".png").exists()
    assert benchmark.main([*arguments, "one_graph", "conditional", "--no-sweeps"]) == 0
    ratios = json.loads(out.read_text())["ratios"]  # no exact twin of the conditional branch was asked for
    assert set(ratios) == {"conditional"} and set(ratios["conditional"]) == {"time", "memory"}
