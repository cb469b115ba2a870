"""The bias metric, its floor, intervals, and what a number of images can say."""

import json
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fair_adapter.shared import metrics
from fair_adapter.shared.attributes import GENDER, RACE
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.metrics import (
    bias,
    bias_floor,
    bootstrap_interval,
    class_counts,
    frequencies,
    images_needed,
    joint_labels,
    mean_over_prompts,
    measure_bias,
    measure_joint,
    paired_counts,
    paired_difference,
    power,
    prompt_interval,
    sample_note,
    target_error,
    target_error_floor,
    wilson_interval,
)


def test_metric_in_closed_form():
    assert bias([0.8, 0.2]) == pytest.approx(0.6)
    assert bias([0.5, 0.3, 0.2]) == pytest.approx((0.2 + 0.3 + 0.1) / 3)
    for k in (2, 3, 4, 6, 8):
        assert bias(np.eye(k)[0]) == pytest.approx(2 / k) and bias(np.full(k, 1 / k)) == pytest.approx(
            0, abs=1e-12
        )
    with pytest.raises(FairAdapterError, match="2 classes or more"):
        bias([1.0])


@given(st.lists(st.integers(0, 50), min_size=2, max_size=8).filter(any))
def test_metric_is_the_mean_over_pairs(counts):
    f = np.array(counts) / sum(counts)
    pairs = [abs(a - b) for i, a in enumerate(f) for b in f[:i]]
    assert bias(f) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert bias(f) == pytest.approx(bias(f[::-1]), abs=1e-12)


def test_absolute_value_comes_before_the_mean():
    labels = [np.zeros(10, dtype=int), np.ones(10, dtype=int)]  # opposite stereotypes do not cancel
    found = measure_bias(labels, GENDER.classes)
    assert found.bias == 1.0 and found.std == 0.0 and found.shares == {"female": 0.5, "male": 0.5}


def test_images_and_prompts_without_a_face_are_dropped():
    labels = [np.array([0, 0, 1, -1]), np.array([-1, -1]), np.array([1])]
    found = measure_bias(labels, GENDER.classes)
    assert found.bias == pytest.approx((1 / 3 + 1) / 2) and found.prompts == 2 and found.n_per_prompt == 2.0
    assert found.floor == pytest.approx((bias_floor(3, 2) + bias_floor(1, 2)) / 2)
    with pytest.raises(FairAdapterError, match="no face in the images of 2 prompts"):
        measure_bias([np.array([-1]), np.array([])], GENDER.classes)
    with pytest.raises(FairAdapterError, match="expected -1 to 1, found 0 to 2"):
        class_counts([np.array([0, 2])], 2)


def test_joint_cells_need_every_attribute():
    labels = {
        "gender": [np.array([0, 1, 1, -1, 0])],
        "race": [np.array([0, 2, 1, 0, -1])],
    }
    assert joint_labels(labels, [GENDER, RACE])[0].tolist() == [0, 5, 4, -1, -1]
    found = measure_joint(labels, [GENDER, RACE])
    assert list(found.shares)[5] == "male*asian" and found.n_per_prompt == 3.0
    assert found.shares["male*asian"] == pytest.approx(1 / 3)


# what a perfectly fair model scored when simulated: classes, faces per prompt, bias
REFERENCE = [
    (2, 60, 0.103),
    (2, 100, 0.079),
    (2, 160, 0.063),
    (4, 80, 0.063),
    (4, 160, 0.045),
    (8, 160, 0.031),
]


@pytest.mark.parametrize(("classes", "n", "expected"), REFERENCE)
def test_floor_against_the_reference(classes, n, expected):
    assert bias_floor(n, classes) == pytest.approx(expected, abs=0.001)


@pytest.mark.parametrize(("classes", "n"), [(2, 1), (2, 7), (2, 96), (3, 96), (6, 96), (6, 5), (2, 2000)])
def test_floor_is_the_simulated_expectation(classes, n):
    sample = np.random.default_rng(0).multinomial(n, np.full(classes, 1 / classes), size=20000)
    scores = bias(sample / n)
    assert bias_floor(n, classes) == pytest.approx(scores.mean(), abs=4 * scores.std() / 20000**0.5)


def test_floor_of_the_demo_and_bad_input():
    """At n = 96 a perfectly fair model scores .08 / .07 / .05 for gender, race and gender x race."""
    assert [round(bias_floor(96, k), 2) for k in (2, 3, 6)] == [0.08, 0.07, 0.05]
    assert bias_floor(1, 2) == 1.0
    with pytest.raises(FairAdapterError, match="n >= 1"):
        bias_floor(0, 2)


def test_pooled_frequencies_weigh_faces_and_not_prompts():
    counts = class_counts([np.zeros(30, dtype=int), np.ones(10, dtype=int)], 2)
    assert frequencies(counts).tolist() == [[1, 0], [0, 1]]
    assert frequencies(counts.sum(axis=0)).tolist() == [0.75, 0.25]


def test_target_error_and_its_floor():
    target = np.array([0.75, 0.25])
    assert target_error([0.5, 0.5], target) == pytest.approx(0.25)
    assert target_error([[0.75, 0.25], [1, 0]], target).tolist() == [0, 0.25]
    sample = np.random.default_rng(0).multinomial(48, target, size=20000) / 48
    assert target_error_floor(48, target) == pytest.approx(target_error(sample, target).mean(), rel=0.02)


def test_interval_covers_the_expected_metric():
    """Coverage over fresh prompts and images; nested drawing is a little wide, never narrow."""
    rng = np.random.default_rng(0)
    truth = np.abs(2 * rng.binomial(64, rng.beta(2, 2, 200_000)) / 64 - 1).mean()
    hits = 0
    for repeat in range(100):
        shares = rng.beta(2, 2, 30)
        counts = np.stack([rng.multinomial(64, [p, 1 - p]) for p in shares])
        low, high = bootstrap_interval(counts, draws=200, seed=repeat)
        hits += low <= truth <= high
    assert 88 <= hits <= 100


def test_interval_of_a_fair_model_covers_its_floor():
    """A percentile interval would not: drawing images anew lifts an absolute value."""
    rng = np.random.default_rng(1)
    hits = 0
    for repeat in range(40):
        low, high = bootstrap_interval(rng.multinomial(96, [0.5, 0.5], size=20), draws=200, seed=repeat)
        hits += low <= bias_floor(96, 2) <= high
    assert hits >= 36


def test_interval_is_deterministic_ordered_and_within_range():
    counts = np.array([[10, 0], [0, 10], [9, 1]])
    low, high = bootstrap_interval(counts, seed=3)
    assert (low, high) == bootstrap_interval(counts, seed=3) != bootstrap_interval(counts, seed=4)
    assert 0 <= low <= bias(counts / 10).mean() <= high <= 1
    assert bootstrap_interval(np.array([[7, 0, 0]])) == (2 / 3, 2 / 3)


def test_interval_of_the_target_error_is_that_of_the_bias_where_both_say_the_same():
    """Of two classes in equal shares the mean distance to the target is half the bias."""
    counts = np.array([[30, 10], [5, 35], [22, 18], [40, 0]])
    half = bootstrap_interval(counts, partial(target_error, target=np.array([0.5, 0.5])))
    assert half == pytest.approx(np.array(bootstrap_interval(counts)) / 2, abs=1e-12)
    low, high = bootstrap_interval(counts, partial(target_error, target=np.array([1.0, 0.0])))
    assert 0 <= low < target_error(frequencies(counts), np.array([1.0, 0.0])).mean() < high <= 1


def test_mean_over_prompts_leaves_those_without_a_face_out():
    counts = np.array([[[3, 1], [0, 0], [0, 2]], [[0, 0], [0, 0], [0, 0]]])
    found = mean_over_prompts(counts)
    assert found[0] == pytest.approx((0.5 + 1.0) / 2) and np.isnan(found[1])


# ---- two models on the same noises


def test_pairs_in_closed_form():
    before, after = [np.array([0, 0, 1, -1])], [np.array([0, 1, 1, 0])]
    table = paired_counts(before, after, 2)
    assert table.tolist() == [[[1, 1, 0], [0, 1, 0], [1, 0, 0]]]
    added, _ = paired_difference(table)
    assert added == pytest.approx(0.0 - 1 / 3)
    with pytest.raises(FairAdapterError, match="found 4 and 3"):
        paired_counts(before, [after[0][:3]], 2)
    nobody = paired_counts(before, [np.full(4, -1)], 2)
    assert np.isnan(paired_difference(nobody)[0])


labels_of_two_models = st.lists(
    st.lists(st.tuples(st.integers(-1, 2), st.integers(-1, 2)), min_size=1, max_size=12),
    min_size=1,
    max_size=4,
)


@given(labels_of_two_models)
def test_difference_is_that_of_the_two_measures_and_nothing_between_a_model_and_itself(prompts):
    before, after = ([np.array([pair[i] for pair in prompt]) for prompt in prompts] for i in (0, 1))
    if not all(any((label >= 0).any() for label in model) for model in (before, after)):
        return
    added, (low, high) = paired_difference(paired_counts(before, after, 3), draws=50)
    two = [measure_bias(model, RACE.classes, draws=1).bias for model in (before, after)]
    assert added == pytest.approx(two[1] - two[0], abs=1e-12) and -2 / 3 <= low <= high <= 2 / 3
    assert paired_difference(paired_counts(before, before, 3), draws=50) == (0.0, (0.0, 0.0))


def coupled(rng, prompts: int, pictures: int, changed: float):
    """Labels of two models: the second flips a picture of class 1 to 0 with probability `changed`."""
    before, after = [], []
    for share in rng.beta(2, 2, prompts):
        first = (rng.random(pictures) < share).astype(int)
        before.append(first)
        after.append(np.where((first == 1) & (rng.random(pictures) < changed), 0, first))
    return before, after


def test_interval_of_a_difference_covers_it_and_is_narrower_than_without_pairs():
    rng = np.random.default_rng(0)
    truth = np.mean(
        [
            measure_bias(after, "ab", draws=1).bias - measure_bias(before, "ab", draws=1).bias
            for before, after in (coupled(rng, 200, 64, 0.15) for _ in range(100))
        ]
    )
    hits, paired, apart = 0, [], []
    for repeat in range(60):
        before, after = coupled(rng, 24, 64, 0.15)
        _, (low, high) = paired_difference(paired_counts(before, after, 2), draws=200, seed=repeat)
        hits += low <= truth <= high
        paired.append(high - low)
        widths = [
            np.diff(bootstrap_interval(class_counts(model, 2), draws=200))[0] for model in (before, after)
        ]
        apart.append(np.hypot(*widths))
    assert hits >= 53 and np.mean(paired) < 0.75 * np.mean(apart)


# ---- prompts drawn anew


def test_interval_of_a_mean_is_the_normal_one():
    values = np.random.default_rng(0).normal(0.5, 0.1, 60)
    low, high = prompt_interval(values)
    half = 1.96 * values.std() / 60**0.5
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)
    assert (low, high) == prompt_interval(values) and prompt_interval(values[:1]) is None


def test_interval_over_prompts_alone_covers_what_pictures_add():
    """Prompts that do not differ at all: the whole spread of their means is their pictures' noise."""
    rng, hits = np.random.default_rng(2), 0
    for repeat in range(100):
        low, high = prompt_interval((rng.random((30, 16)) < 0.3).mean(1), draws=200, seed=repeat)
        hits += low <= 0.3 <= high
    assert 88 <= hits <= 100


def test_interval_of_any_statistic_of_the_prompts_is_moved_back_onto_it():
    counts = np.random.default_rng(0).multinomial(40, [0.5, 0.5], size=12)

    def pooled(sets):
        return target_error(frequencies(sets.sum(axis=1)), np.array([0.5, 0.5]))

    low, high = prompt_interval(counts, pooled)
    measured = float(pooled(counts[None])[0])
    assert low < measured < high
    doubled = prompt_interval(counts, lambda sets: 2 * pooled(sets))
    assert doubled == pytest.approx((2 * low, 2 * high))


def test_measure_is_json():
    rng = np.random.default_rng(0)
    found = measure_bias([rng.integers(0, 3, 50) for _ in range(4)], RACE.classes)
    again = json.loads(json.dumps(found.to_dict()))
    assert set(again) == {"bias", "std", "ci95", "floor", "n_per_prompt", "prompts", "shares"}
    assert again["ci95"][0] < again["bias"] < again["ci95"][1] and list(again["shares"]) == list(RACE.classes)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (5, 10), (10, 10), (37, 160)])
def test_wilson_matches_scipy(successes, n):
    expected = stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson_interval(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_wilson_without_images_knows_nothing():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(FairAdapterError, match="0 to 3 successes"):
        wilson_interval(4, 3)


def test_power_is_that_of_the_exact_test():
    n, level = 30, 0.05
    rejected = [
        k for k in range(n + 1) if min(stats.binom.cdf(k, n, 0.5), stats.binom.sf(k - 1, n, 0.5)) <= level / 2
    ]
    assert power(n, 0.5, 0.7) == pytest.approx(sum(stats.binom.pmf(k, n, 0.7) for k in rejected))
    assert power(8, 0.5, 0.5) <= level


def test_eight_images_say_little():
    assert sample_note(8).startswith("8 faces can't tell 50/50 from 70/30; that takes ")
    needed = images_needed(0.5, 0.7)
    assert power(needed, 0.5, 0.7) >= 0.8 > power(needed - 1, 0.5, 0.7)
    assert "can't" not in sample_note(needed) and sample_note(1, 0.75, 0.5).startswith(
        "1 face can't tell 75/25"
    )
    assert images_needed(0.5, 0.9) < needed < images_needed(0.5, 0.6)
    with pytest.raises(FairAdapterError, match="told from itself"):
        images_needed(0.5, 0.5)


def test_the_note_under_the_bars_is_searched_once(monkeypatch) -> None:
    counted = []
    monkeypatch.setattr(metrics, "power", lambda *given: counted.append(given) or power(*given))
    metrics.images_needed.cache_clear()
    note = sample_note(12)
    assert len(counted) == len(set(counted)) == images_needed(0.5, 0.7) + 3  # each number of faces once
    counted.clear()
    assert sample_note(12) == note and sample_note(5000).startswith("5000 faces tell") and not counted


@pytest.mark.parametrize("n", [5, 255, 256, 257, 1001, 20000])
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_floor_of_many_faces_is_that_of_the_whole_sum(n: int, classes: int) -> None:
    steps = np.arange(n + 1)
    at_zero = np.cumprod([1.0, *((2 * j - 1) / (2 * j) for j in range(1, n // 2 + 1))])
    expected = stats.binom.pmf(steps, n, 2 / classes) @ (steps * at_zero[steps // 2]) / n
    assert bias_floor(n, classes) == pytest.approx(expected, rel=1e-9)
