# SPDX-License-Identifier: Apache-2.0
"""The length estimator is calibrated, bounded and local."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_batchllm.admission.guessed.length_estimator import Bounds, LengthEstimator
from vllm_batchllm.admission.hints import HINT, hint_from

ENDLESS = Bounds(max_tokens=10**6)
Drawn = Callable[[np.random.Generator, int], np.ndarray]

DISTRIBUTIONS: dict[str, Drawn] = {
    "geometric": lambda rng, n: rng.geometric(1 / 80, n),
    "lognormal": lambda rng, n: np.maximum(np.rint(rng.lognormal(4, 1, n)), 1),
    "uniform": lambda rng, n: rng.integers(1, 300, n),
}
# No quantile of these covers 75-85 %: the whole mass below sits on one value.
LUMPED: dict[str, tuple[Drawn, float]] = {
    "fixed": (lambda rng, n: np.full(n, 96), 1.0),
    "bimodal": (lambda rng, n: np.where(rng.random(n) < 0.1, 400, 16), 0.9),
}


def coverage(draw: Drawn, grouped: bool, warm_up: int = 50) -> float:
    """Share of outcomes within the predicted 80 % quantile, once ``warm_up`` have been seen.

    ``grouped``: in groups of 8 under parents of 64, all from one distribution.
    """
    covered = []
    for seed in range(10):
        estimator = LengthEstimator()
        for number, length in enumerate(draw(np.random.default_rng(seed), 600)):
            path = (("parent", number // 64), ("group", number // 8)) if grouped else ()
            if number >= warm_up:
                covered.append(length <= estimator.predict(path, 0.8, ENDLESS))
            estimator.learn(path, int(length))
    return float(np.mean(covered))


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_80_percent_quantile_covers_75_to_85_percent(name, grouped) -> None:
    assert 0.75 <= coverage(DISTRIBUTIONS[name], grouped) <= 0.85


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("name", LUMPED)
def test_where_the_mass_is_lumped_it_covers_the_whole_lump(name, grouped) -> None:
    draw, lump = LUMPED[name]
    assert coverage(draw, grouped) == pytest.approx(lump, abs=0.03)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("num_generated", [20, 60])
def test_it_is_calibrated_for_those_that_have_run_for_a_while(name, num_generated) -> None:
    rng = np.random.default_rng(1)
    lengths = DISTRIBUTIONS[name](rng, 1000)
    estimator = LengthEstimator()
    for length in lengths:
        estimator.learn((), int(length))
    predicted = estimator.predict((), 0.8, Bounds(10**6, num_generated))
    later = DISTRIBUTIONS[name](rng, 20_000)
    survivors = later[later > num_generated]
    assert 0.75 <= float(np.mean(survivors <= predicted)) <= 0.85


def test_a_group_of_its_own_kind_is_believed_once_it_has_said_enough() -> None:
    estimator = LengthEstimator()
    for number in range(200):
        estimator.learn(("verbose",), 300)
        estimator.learn(("terse", number % 25), 5)
    assert estimator.predict(("verbose",), 0.8, ENDLESS) == 300
    assert estimator.predict(("terse", 3), 0.7, ENDLESS) == 5
    assert estimator.predict(("unheard of",), 0.8, ENDLESS) == 300


def test_a_few_samples_do_not_outweigh_many() -> None:
    estimator = LengthEstimator()
    for _ in range(300):
        estimator.learn((), 200)
    for _ in range(3):
        estimator.learn(("new group",), 5)
    assert estimator.predict(("new group",), 0.8, ENDLESS) == 200


def test_a_narrower_level_with_the_same_samples_adds_no_weight() -> None:
    """Eight samples seen on four nested levels are still eight samples."""
    nested, single = LengthEstimator(), LengthEstimator()
    for length in [200] * 60 + [5] * 8:
        nested.learn(("a", "b", "c", "d") if length == 5 else (), length)
        single.learn(("d",) if length == 5 else (), length)
    for quantile in np.linspace(0.05, 0.95, 19):
        assert nested.predict(("a", "b", "c", "d"), quantile, ENDLESS) == single.predict(
            ("d",), quantile, ENDLESS
        )


def test_before_anything_has_finished_the_prior_stands() -> None:
    estimator = LengthEstimator(prior_tokens=128)
    assert estimator.predict(("a",), 0.8, Bounds(4096)) == 128
    assert estimator.predict(("a",), 0.8, Bounds(64)) == 64
    assert estimator.predict(("a",), 0.8, Bounds(4096, 500)) == 1000, "it has outlived the prior"


def test_what_has_outlived_all_others_is_expected_to_go_on_as_long_again() -> None:
    estimator = LengthEstimator(prior_tokens=10)
    for _ in range(100):
        estimator.learn((), 16)
    assert estimator.predict((), 0.8, Bounds(4096, 100)) == 200
    assert estimator.predict((), 0.8, Bounds(150, 100)) == 150


lengths = st.lists(st.integers(0, 500), max_size=40)


@given(lengths, st.floats(0.01, 0.99), st.integers(1, 600), st.integers(0, 600))
def test_the_bounds_are_hard(seen, quantile, max_tokens, num_generated) -> None:
    estimator = LengthEstimator()
    for number, length in enumerate(seen):
        estimator.learn(("tree", number % 3), length)
    bounds = Bounds(max_tokens, num_generated)
    predicted = estimator.predict(("tree", 1), quantile, bounds)
    assert predicted <= max_tokens
    assert predicted > num_generated or predicted == max_tokens


@given(lengths, st.integers(0, 300))
def test_a_higher_quantile_is_never_shorter(seen, num_generated) -> None:
    estimator = LengthEstimator()
    for number, length in enumerate(seen):
        estimator.learn((number % 4,), length)
    bounds = Bounds(10**6, num_generated)
    predicted = [estimator.predict((2,), q, bounds) for q in (0.1, 0.5, 0.8, 0.95)]
    assert predicted == sorted(predicted)


@given(lengths, st.sampled_from([0.2, 0.5, 0.8]))
def test_without_groups_it_is_the_conformal_quantile(seen, quantile) -> None:
    """The ceil((n + 1) q)-th of n samples; beyond them all if there is no such sample."""
    estimator = LengthEstimator(prior_tokens=1001)
    for length in seen:
        estimator.learn((), length)
    rank = int(np.ceil((len(seen) + 1) * quantile - 1e-6))
    positive = [max(length, 1) for length in sorted(seen)]
    expected = positive[rank - 1] if rank <= len(seen) else 1001
    if 0 not in seen:  # an output under way has at least one token
        assert estimator.predict((), quantile, ENDLESS) == expected


def test_a_hint_wins_until_it_is_outgrown() -> None:
    estimator = LengthEstimator()
    for _ in range(100):
        estimator.learn((), 50)
    assert estimator.predict((), 0.8, Bounds(4096, 0, hint=7)) == 7
    assert estimator.predict((), 0.8, Bounds(5, 0, hint=7)) == 5
    assert estimator.predict((), 0.8, Bounds(4096, 7, hint=7)) == 50


@pytest.mark.parametrize("value", [0, -3, 2.0, "64", True, None, [1]])
def test_bad_hints_are_refused_by_name_and_value(value) -> None:
    with pytest.raises(ValueError, match=r"'expected_output_tokens' = .* not allowed") as refusal:
        hint_from({HINT: value})
    assert repr(value) in str(refusal.value)


@pytest.mark.parametrize(
    "value",
    [2**31, 10**5000, -(10**5000), "x" * 10**6, "1\nERROR a forged line", [4] * 10**6, {"a": {}}],
    ids=["large", "huge", "huge and negative", "long", "two lines", "long list", "mapping"],
)
def test_hints_are_bounded_and_so_are_the_words_that_refuse_them(value) -> None:
    """They come from clients, and the refusal goes into the server's log."""
    with pytest.raises(ValueError, match=r"'expected_output_tokens' = .* not allowed") as refusal:
        hint_from({HINT: value})
    assert len(str(refusal.value)) < 400 and "\n" not in str(refusal.value)


def test_the_largest_hint_is_taken() -> None:
    assert hint_from({HINT: 2**31 - 1}) == 2**31 - 1


def test_hints_are_read_from_the_extra_arguments_of_a_request() -> None:
    assert hint_from(None) is None
    assert hint_from({"other": 1}) is None
    assert hint_from({HINT: 96}) == 96


def test_memory_is_bounded_and_the_oldest_is_forgotten() -> None:
    estimator = LengthEstimator(samples_per_group=8, samples_overall=32, max_groups=10)
    for number in range(5000):
        estimator.learn((number, "common"), 100 if number < 4900 else 7)
    assert estimator.num_groups == 10
    assert estimator.num_samples <= 10 * 8 + 32
    assert estimator.num_seen == 5000
    assert estimator.predict(("common",), 0.8, ENDLESS) == 7


@pytest.mark.parametrize("quantile", [0.0, 1.0, -0.5, 1.5, float("nan")])
def test_quantiles_outside_the_open_unit_interval_are_refused(quantile) -> None:
    with pytest.raises(ValueError, match=r"inside \(0, 1\), got"):
        LengthEstimator().predict((), quantile, ENDLESS)


@pytest.mark.parametrize(
    "name", ["prior_tokens", "samples_per_group", "samples_overall", "max_groups", "shrinkage"]
)
def test_bad_figures_are_refused_by_name(name) -> None:
    with pytest.raises(ValueError, match=f"{name} must be .*, got 0"):
        LengthEstimator(**{name: 0})


def test_a_negative_length_is_refused() -> None:
    with pytest.raises(ValueError, match="output of -1 tokens"):
        LengthEstimator().learn((), -1)
