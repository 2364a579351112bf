"""The interface: what comes back, what is left alone, and that memory layout is no input."""

from __future__ import annotations

import warnings
from functools import partial
from itertools import permutations

import numpy as np
from hypothesis import assume

from qkverify.contract import process_settings
from qkverify.probes.attention_conventions import MISMATCHES, mismatched
from qkverify.runs.assertions import assert_identical, assert_true, assert_within_bound
from qkverify.runs.concurrent_calls import together, unfit
from qkverify.strategies.attention_problems import STRIDED, first_key_alone, problems
from qkverify.verification.laws import law


@law(
    "The output has the shape (B,H,Q,E) and the dtype of the query, and it is finite where the exact result is.",
    source="the contract",
    problem=problems(),
)
def test_shape_dtype_device(run, problem):
    """Shape and dtype are checked on every call; here every size differs and the numbers must be finite."""
    got = run.values(problem).astype(np.float64)
    judged = np.isfinite(run.bound(problem)[0].errors) & np.isfinite(run.exact(problem))
    assert_true(np.isfinite(got[judged]), "the output is not finite where the exact result is")


@law(
    "A call does not write to its inputs.",
    source="purity: in-place scaling, masks filled in place",
    exact=True,
    problem=problems(layouts=False),
)
def test_inputs_are_not_written(run, problem):
    arrays = {name: x for name, x in vars(problem).items() if isinstance(x, np.ndarray)}
    before = {name: x.tobytes() for name, x in arrays.items()}
    run.values(problem)
    for name, x in arrays.items():
        assert_true(x.tobytes() == before[name], f"the call wrote to {name}")


@law(
    "Computing gradients does not write to the inputs, nor to the upstream gradient.",
    source="purity: gradients accumulated in place",
    exact=True,
    needs="gradients",
    problem=problems(layouts=False, upstream=True),
)
def test_gradients_write_to_no_input(run, problem):
    arrays = {name: x for name, x in vars(problem).items() if isinstance(x, np.ndarray)}
    before = {name: x.tobytes() for name, x in arrays.items()}
    run.gradient_values(problem)
    for name, x in arrays.items():
        assert_true(x.tobytes() == before[name], f"the backward pass wrote to {name}")


@law(
    "The same call twice gives the same result, bit for bit if that is declared.",
    source="determinism; state kept between calls",
    problem=problems(),
)
def test_same_call_twice(run, problem):
    first, second = run(problem), run(problem)
    if run.semantics["deterministic"] == "yes":
        assert_identical(second.value, first.value)
    else:
        assert_within_bound(second, first)


@law(
    "A call gives the same result after calls of other sizes.",
    source="caches with an incomplete key",
    problem=problems(long=False),
    other=problems(long=False),
)
def test_history_does_not_matter(run, problem, other):
    first = run.values(problem)
    run.values(other)
    again = run(problem)
    assert_within_bound(again, type(again)(first.astype(np.float64), again.errors))


@law(
    "A returned result does not change when other calls follow, or when the inputs are overwritten.",
    source="output buffers kept between calls; outputs that are views of inputs",
    exact=True,
    problem=problems(long=False, layouts=False),
    alone=(False, True),
)
def test_results_are_kept(run, problem, alone):
    """One query and one key alone: their output is the value, and might be handed back itself."""
    if alone:
        problem = first_key_alone(run, problem)
    later = problem.replace(value=(2 * problem.value.astype(np.float64) + 1).astype(run.numpy_dtype))
    before, after = run.kept(problem, later)
    assert_identical(after, before)


@law(
    "If an input is overwritten in place, the next call uses its new numbers.",
    source="results cached by the object instead of its contents",
    problem=problems(long=False, layouts=False),
    other=range(100),
)
def test_inputs_are_read_anew(run, problem, other):
    rng = np.random.default_rng(other)
    changed = problem.replace(
        **{
            name: rng.standard_normal(getattr(problem, name).shape).astype(run.numpy_dtype)
            for name in ("query", "key", "value")
        }
    )
    first, second = run.overwritten(problem, changed)
    assert_within_bound(first, run.exact(problem), what="output of the first call")
    assert_within_bound(second, run.exact(changed), what="output of the second call")


@law(
    "Calls in several threads do not disturb one another.",
    source="one scratch buffer for all callers",
    problem=problems(layouts=False, tame=True, sizes={"B": 2, "G": 2, "H": "G", "Q": 65, "K": 129}),
    when=unfit,
    weight=0.1,
    chance=True,
)
def test_threads_do_not_disturb(run, problem):
    calls = [
        problem.replace(query=(problem.query.astype(np.float64) * factor).astype(run.numpy_dtype))
        for factor in (1.0, -1.0, 2.0, -2.0)
    ]
    alone = [run.values(call) for call in calls]
    outputs = together(run, [partial(run.values, call) for call in calls * 12])
    for i, got in enumerate(outputs):
        bound = run.bound(calls[i % len(calls)])[0]
        assert_within_bound(
            run.within(got, bound), run.within(alone[i % len(calls)], bound), what=f"output of call {i}"
        )


@law(
    "The type of the integers that hold the lengths does not matter: the result is right, or the type is refused.",
    source="32-bit lengths read from a 64-bit array",
    needs="key_lengths",
    problem=problems(use=("key_lengths",), long=False),
    dtype=("int64", "int32", "int16", "uint8"),
)
def test_lengths_of_any_integer_type(run, problem, dtype):
    converted = problem.replace(key_lengths=problem.key_lengths.astype(dtype))
    try:
        got = run.values(converted)
    except (TypeError, ValueError, RuntimeError):
        return
    assert_within_bound(run.within(got, run.bound(problem)[0]), run.exact(problem))


@law(
    "A call leaves the process as it was: random generators, default dtype, gradient mode, threads.",
    source="a seed set, or a mode switched on, inside a kernel",
    exact=True,
    problem=problems(long=False, layouts=False),
    weight=0.4,
)
def test_global_state_is_left_alone(run, problem):
    # What an earlier call left behind does not count, and what this one does ends with it.
    with warnings.catch_warnings(), np.errstate(all="warn"), run.framework.restored():
        warnings.simplefilter("ignore")
        run.framework.stir()
        before = run.framework.global_state()
        run.values(problem)
        changed = process_settings.differences(before, run.framework.global_state())
    assert_true(not changed, f"the call changed {'; '.join(changed)}")


@law(
    "Query, key and value may be slices of one buffer, in any order.",
    source="one projection for all three; a packed buffer assumed where the storage is one",
    problem=problems(
        sizes={"H": "G", "K": "Q", "E": "D"}, only=("causal", "scale"), layouts=False, long=False, tame=True
    ),
    order=tuple(permutations(range(3))),
)
def test_one_buffer_in_any_order(run, problem, order):
    assert_within_bound(run.from_one_buffer(problem, order), run.exact(problem))


@law("Memory layout does not matter: a view gives the same result as a copy, for each argument alone.", source="strides assumed contiguous", problem=problems(layouts=False),
     name=("query", "key", "value", "mask", "bias", "key_lengths", "alibi_slopes", "sinks"), layout=STRIDED)  # fmt: skip
def test_layout_invariance(run, problem, name, layout):
    placed = (
        problem.replace(layouts={name: layout})
        if getattr(problem, name) is not None
        else problem.replace(layouts={"query": layout})
    )
    assert_within_bound(run(placed), run(problem))


@law(
    "A batch whose entries are the same memory (stride zero) is a batch of equal entries.",
    source="expanded tensors",
    problem=problems(layouts=False),
    name=("query", "key", "value"),
)
def test_stride_zero_batch(run, problem, name):
    same = problem.replace(**{name: np.repeat(getattr(problem, name)[:1], problem.sizes["B"], axis=0)})
    assert_within_bound(run(same.replace(layouts={name: "batch of stride zero"})), run(same))


@law("Rows may overlap in memory: a window that slides over a sequence is read as the numbers that it shows.", source="tensor.unfold; a row stride assumed to be at least the row",
     problem=problems(layouts=False, long=False), name=("query", "key", "value"),
     when=lambda run: None if run.implementation.layout == "BHLD" else f"takes arrays as {run.implementation.layout}")  # fmt: skip
def test_overlapping_rows(run, problem, name):
    """Of the query no rows longer than their number: there torch's own flash attention is wrong on the CPU, and so is whatever calls
    it (reports/findings/torch-cpu-flash-misplaces-rows-of-an-overlapping-query)."""
    rows = getattr(problem, name)
    assume(name != "query" or rows.shape[3] <= rows.shape[2])
    sequence = np.resize(rows.swapaxes(-1, -2), (*rows.shape[:2], rows.shape[2] + rows.shape[3] - 1))
    windows = np.lib.stride_tricks.sliding_window_view(sequence, rows.shape[3], axis=-1)
    same = problem.replace(**{name: np.ascontiguousarray(windows)})
    assert_within_bound(run(same.replace(layouts={name: "overlapping rows"})), run.exact(same))


@law(
    "Finite inputs give finite outputs.",
    source="overflow, 0/0",
    problem=problems(upstream=True, extremes=True),
)
def test_finite_in_finite_out(run, problem):
    got, exact = run(problem), run.exact(problem)
    judged = np.isfinite(got.errors) & np.isfinite(exact)
    assert_true(np.isfinite(got.value[judged]), "finite inputs give NaN or infinity")


@law(
    "Axes of length zero give empty outputs, and no keys give empty rows (or the implementation declares requires=('K >= 1',)).",
    source="empty sequences",
    problem=problems(zero=True, long=False, layouts=False),
)
def test_empty_axes(run, problem):
    got, exact = run(problem), run.exact(problem)
    if problem.sizes["K"]:
        assert_within_bound(got, exact)


@law(
    "Sizes of one work: one batch entry, one head, one query, one key.",
    source="sizes of one",
    problem=problems(sizes={"B": 1, "G": 1, "H": 1, "Q": 1, "K": 1}),
    weight=0.25,
)
def test_one_of_everything(run, problem):
    assert_within_bound(run(problem), run.exact(problem))


@law("Sizes that do not fit raise an error: nothing is read past an end, nothing broadcast by chance.", source="a key count taken from the values (pytorch #193728)",
     exact=True, problem=problems(only=(), layouts=False, long=False), which=tuple(MISMATCHES))  # fmt: skip
def test_mismatched_sizes_raise(run, problem, which):
    # Twice a batch or a length of one broadcasts in array libraries; only sizes that no rule allows are asked for.
    assume(which != "batches differ" or problem.sizes["B"] > 1)
    assume(problem.sizes["K"] > 1 and problem.sizes["D"] > 1)
    misfit = mismatched(problem, which)
    try:
        run.native_call(misfit)
    except Exception:
        return
    if run.semantics["mismatched_sizes"] == "cut":
        got = run.values(misfit)
        assert_within_bound(run.within(got, run.bound(problem)[0]), run.exact(problem))
        return
    assert_true(False, f"{which} than the rest of the call, but no error: query {problem.query.shape}, "
                f"key {misfit.key.shape}, value {misfit.value.shape}")  # fmt: skip
