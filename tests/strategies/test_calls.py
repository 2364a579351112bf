"""Calls of every operation as data, what is held of them between calls, and the odds of the laws about chance."""

from __future__ import annotations

import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.errors import HypothesisDeprecationWarning

from qkverify import implementation
from qkverify.contract import OPERATIONS, describe, frameworks
from qkverify.contract.registry import find, load_folder
from qkverify.errors import ContractError, LawViolation
from qkverify.problem.attention_problem import LAYOUTS
from qkverify.problem.byte_strategies import fields
from qkverify.properties import test_calls as laws
from qkverify.properties import test_dropout
from qkverify.runs.concurrent_calls import together
from qkverify.runs.run import Run
from qkverify.strategies.operation_cases import PreparedCall, example
from qkverify.strategies.operations import OPERATION_SPECS
from qkverify.verification.checking import Cell, applicable, check, law_book, prepare
from qkverify.verification.laws import Law
from qkverify.verification.replay_command import replay_counterexample


def softmax(scores):
    """Right."""
    exponentials = np.exp(scores - scores.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def run_of(operation):
    """On the first NumPy implementation of the folder; softmax has none, because NumPy's are controls."""
    if operation == "softmax":
        return Run(describe(softmax), dtype="float64")
    of_numpy = (implementation for implementation in load_folder() if implementation.arrays == "numpy")
    return Run(
        next(implementation for implementation in of_numpy if implementation.operation == operation),
        dtype="float64",
    )


def drawn(operation, last=False, seed=11):
    """The simplest sizes, or the largest and most switched on; normal numbers."""
    sizes = {name: pool[-1 if last else 0] for name, pool in OPERATION_SPECS[operation].sizes.items()}
    return {"fill": "normal", "seed": seed, **sizes}


def test_every_operation_has_calls():
    assert {*OPERATION_SPECS, "attention"} == set(OPERATIONS)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("operation", OPERATION_SPECS)
def test_what_a_call_should_return_is_what_it_returns(operation, last):
    run = run_of(operation)
    call = example(run, drawn(operation, last))
    for got, exact in zip(PreparedCall(run, call).results(), call.exact(run), strict=True):
        infinite = (got == exact.value) & np.isinf(got)
        with np.errstate(invalid="ignore"):
            assert (infinite | (np.abs(got - exact.value) <= run.within(got, exact).errors)).all()


@pytest.mark.parametrize("operation", [name for name, form in OPERATION_SPECS.items() if form.has_arrays])
def test_another_turn_has_other_numbers_of_the_same_sizes(operation):
    run = run_of(operation)
    first, same, other = (example(run, drawn(operation, last=True), turn) for turn in (0, 0, 1))
    assert first.arrays.keys() == same.arrays.keys() == other.arrays.keys()
    for name, x in first.arrays.items():
        np.testing.assert_array_equal(same.arrays[name], x)
        assert other.arrays[name].shape == x.shape
        assert other.arrays[name].dtype == x.dtype
    assert any((other.arrays[name] != x).any() for name, x in first.arrays.items())


def test_a_cache_goes_on_where_the_last_turn_ended():
    first, second = (
        example(run_of("cached_attention"), drawn("cached_attention", last=True), t) for t in (0, 1)
    )
    fresh = first.arrays["key"].shape[2]
    np.testing.assert_array_equal(second.arrays["lengths"], first.arrays["lengths"] + fresh)
    assert second.arrays["lengths"].max() + fresh <= second.arrays["key_cache"].shape[2]


def test_what_is_held_is_overwritten_and_read_back():
    run = run_of("encoder_layer")
    call = example(run, drawn("encoder_layer"))
    held = PreparedCall(run, call)
    before = held.results()[0]
    assert run.framework.overwrite(held.native["weights.w_q"], call.arrays["weights.w_q"] + 1)
    assert (held.now().arrays["weights.w_q"] == call.arrays["weights.w_q"] + 1).all()
    assert (held.now().arrays["x"] == call.arrays["x"]).all()
    assert held.arguments["weights"]["w_q"] is held.native["weights.w_q"]
    assert before.shape == call.arrays["x"].shape


def test_a_result_of_another_shape_is_no_result():
    implementation = describe(lambda scores: scores[..., :1], operation="softmax", name="cut", arrays="numpy")
    with pytest.raises(ContractError, match=r"shape \(1, 1, 1\)"):
        PreparedCall(
            Run(implementation, dtype="float64"),
            example(Run(implementation, dtype="float64"), {**drawn("softmax"), "K": 3}),
        ).results()


def test_one_choice_or_another_reaches_every_array():
    call = example(run_of("encoder_layer"), drawn("encoder_layer", last=True))
    chosen = {tuple(laws.chosen_of(call, which)) for which in range(1000)}
    assert tuple(call.arrays) in chosen
    assert {names[0] for names in chosen if len(names) == 1} == set(call.arrays)
    assert tuple(name for name in call.arrays if name.startswith("weights.")) in chosen


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_arrays_are_overwritten_in_their_place(name):
    framework = frameworks.get(name)
    native = framework.from_numpy(np.zeros(3))
    assert framework.overwrite(native, np.ones(3))
    assert (framework.to_numpy(native) == 1).all()
    if name == "torch":
        assert native._version == 1  # as an optimizer's step: who looks at versions sees it
        assert not framework.overwrite(native[:1].expand(3), np.zeros(3))
    else:
        native.flags.writeable = False
        assert not framework.overwrite(native, np.zeros(3))
    before = framework.global_state()
    framework.stir()
    assert framework.global_state() != before


@pytest.mark.parametrize("name", LAYOUTS)
def test_integers_lie_anywhere_too(name):
    rows = np.array(
        [[2, 3, 5], [3, 5, 7]], np.int32
    )  # windows of one sequence, and two entries alike: so of shared memory too
    x = np.tile(rows, (2, 1, 1))
    np.testing.assert_array_equal(LAYOUTS[name](x), x)


def test_threads_return_in_order_and_leave_no_setting_changed():
    run = run_of("softmax")
    assert together(run, [lambda i=i: i * i for i in range(20)]) == [i * i for i in range(20)]
    with pytest.raises(LawViolation, match="random generator"):
        together(run, [lambda: np.random.random()])


def test_a_law_of_several_operations_belongs_to_each():
    kept = next(law for law in law_book() if law.name == "returned_arrays_are_kept")
    cells = [Cell(run_of(operation).implementation, "cpu", "float64") for operation in OPERATION_SPECS]
    assert all(applicable([kept], cell) for cell in cells)
    assert not applicable([kept], Cell(find("numpy_textbook")[0], "cpu", "float64"))
    names = [law.name for law in law_book()]
    assert len(set(names)) == len(names)


def test_what_depends_on_chance_is_not_shrunk(tmp_path, monkeypatch):
    """A law that breaks for every number above ten is shrunk to nearly eleven, and not where chance decides."""
    monkeypatch.chdir(tmp_path)

    def above_ten(run, size):
        run.calls += 1
        if size > 10:
            raise LawViolation(f"{size}")

    sizes = []
    for chance in (False, True):
        law = Law(
            "above_ten",
            "x",
            "",
            "",
            above_ten,
            {"size": range(10**6)},
            operations=("softmax",),
            chance=chance,
        )
        sizes.append(int(check(law, run_of("softmax"), max_examples=50, seed=3).counterexample.got))
    assert sizes[0] < 100 < sizes[1]


KEPT = []


@implementation(name="keeps_its_result", operation="softmax", arrays="numpy", dtypes=("float64",))
def keeps_its_result(scores):
    """Wrong: one buffer."""
    if not KEPT or KEPT[0].shape != scores.shape:
        KEPT[:] = [np.empty_like(scores)]
    KEPT[0][...] = softmax(scores)
    return KEPT[0]


def test_a_failure_is_replayed_from_plain_numbers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    implementation = next(candidate for candidate in find(f"{__file__}:keeps_its_result"))
    kept = next(law for law in law_book() if law.name == "returned_arrays_are_kept")
    verdict = check(kept, prepare(Cell(implementation, "cpu", "float64")), max_examples=50)
    assert verdict.outcome == "failed"
    assert "returned_arrays_are_kept" in replay_counterexample(verdict.counterexample.replay)


# -- dropout: what is left to chance ---------------------------------------------------------------------------------------


class Fair:
    """Stands in for a run whose masks come from a right generator, or from what is made of it."""

    numpy_dtype = np.float64
    implementation = SimpleNamespace(accepts=lambda sizes: None)

    def __init__(self, seed, made=lambda signs: signs):
        self.rng, self.made = np.random.default_rng(seed), made

    def outputs(self, problem, dropout):
        s = problem.sizes
        return (self.made(self.rng.integers(0, 2, (s["B"], s["H"], s["Q"], s["K"]))),)


REPEAT = test_dropout.test_dropped_weights_do_not_repeat.law.body
SHAPE = {"batch": 2, "heads": (4, 2), "rows": (17, 65)}


@settings(max_examples=40, deadline=None)
@given(fields(seed=range(10**9), heads=((2, 2), (4, 2), (1, 1)), rows=test_dropout.rows))
def test_a_right_generator_is_not_accused(drawn):
    shape = {"batch": 2, **drawn}
    REPEAT(Fair(drawn["seed"]), shape)


def test_no_two_right_masks_agree_but_with_the_odds_that_are_claimed():
    most = 2 * 2 * 4  # calls, entries, heads
    for queries, keys in test_dropout.rows:
        assert math.comb(most, 2) * 2.0 ** -(queries * keys) < test_dropout.ODDS


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda x: np.concatenate([x[..., :32], x[..., :32], x[..., :1]], -1), "32 columns"),
        (lambda x: np.concatenate([x[:, :, :8], x[:, :, :8], x[:, :, :1]], 2), "8 rows"),
        (lambda x: np.repeat(x[:, :2], 2, axis=1), "1 heads"),
        (lambda x: np.stack([x[0], x[0]]), "1 entries"),
        (lambda x: np.stack([x[0], np.roll(x[0], 1, 0)]), "1 entries, 1 heads"),
    ],
)
def test_masks_that_repeat_are_found(made, words):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HypothesisDeprecationWarning)  # assume() outside of a Hypothesis test
        with pytest.raises(LawViolation, match=words):
            REPEAT(Fair(1, made), SHAPE)


def test_the_correlation_is_the_sum_that_it_stands_for():
    x = np.random.default_rng(2).choice([-1, 1], (2, 3, 5))
    correlation = test_dropout._correlated(x)
    assert correlation[0, 0, 0] == x.size
    assert correlation[1, 2, 3] == (x[1:, 2:, 3:] * x[:-1, :-2, :-3]).sum()
    assert correlation[0, -1, 2] == (x[:, :-1, 2:] * x[:, 1:, :-2]).sum()
