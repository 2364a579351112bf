"""What a call owes its caller, whatever it computes: every operation but attention, which has the same laws in `test_contract`.

Each law is written once; `qkverify.strategies.operations` says for each operation how a call is drawn and what it should return. Arrays stay
the same native objects from one call to the next, and are overwritten as their owner does it: a result that was kept for an
object, and not for its contents, shows only so. Half of the calls are made as where a model is served, without gradients.
"""

from __future__ import annotations

import numpy as np
from hypothesis import assume

from qkverify.contract import process_settings
from qkverify.errors import UnsupportedCase
from qkverify.runs.assertions import assert_identical, assert_true, assert_within_bound
from qkverify.runs.concurrent_calls import together, unfit
from qkverify.strategies.attention_problems import STRIDED
from qkverify.strategies.operation_cases import PreparedCall, calls, example
from qkverify.strategies.operations import OPERATION_SPECS
from qkverify.verification.laws import law

everything = {"operation": tuple(OPERATION_SPECS), "call": calls()}
arrays = {
    "operation": tuple(name for name, form in OPERATION_SPECS.items() if form.has_arrays),
    "call": calls(),
}
smooth = {
    "operation": tuple(name for name, form in OPERATION_SPECS.items() if form.differentiable),
    "call": calls(),
}
served = (False, True)


def serving(run, whether):
    """Within it nothing is kept for gradients, if so."""
    return run.framework.inference("no_grad" if whether else "")


def assert_same(run, call, results, wanted, what="result"):
    """Two results of what should be one call, within both bounds: whether they are right is another law's business."""
    for i, (got, other, exact) in enumerate(zip(results, wanted, call.exact(run), strict=True)):
        part = f"part {i} of the {what}" if len(results) > 1 else what
        assert_within_bound(run.within(got, exact), run.within(other, exact), what=part)


def assert_unwritten(held, by):
    """Every array holds what it held, but for those that the operation is there to write."""
    now = held.now().arrays
    for name, before in held.call.arrays.items():
        if name not in held.call.form.written:
            assert_true(now[name].tobytes() == before.tobytes(), f"{by} wrote to {name}")


@law("A call does not write to its arguments, except to the caches that it is meant to write.", source="purity: scaled in place, and back", exact=True, **arrays,
     serve=served)  # fmt: skip
def test_calls_write_to_no_argument(run, call, serve):
    held = PreparedCall(run, example(run, call))
    with serving(run, serve):
        held()
    assert_unwritten(held, "the call")


@law("Computing gradients does not write to the arguments, nor to the upstream gradient.", source="purity: gradients stored over the inputs", exact=True,
     needs="gradients", **smooth)  # fmt: skip
def test_backward_writes_to_no_argument(run, call):
    held = PreparedCall(run, example(run, call))
    rng = np.random.default_rng(call["seed"])
    above = [rng.standard_normal(part.shape).astype(run.numpy_dtype) for part in held.call.exact(run)]
    upstream = tuple(run.framework.from_numpy(x.copy(), run.device) for x in above)
    held.gradients(upstream)
    assert_unwritten(held, "the backward pass")
    left = [run.framework.to_numpy(x).tobytes() for x in upstream]
    assert_true(left == [x.tobytes() for x in above], "the backward pass wrote to the upstream gradient")


@law("A returned result does not change when other calls follow, or when the inputs are overwritten.", source="output buffers kept between calls; outputs that are views of inputs",
     exact=True, **everything, serve=served)  # fmt: skip
def test_returned_arrays_are_kept(run, call, serve):
    held, other = (PreparedCall(run, example(run, call, turn)) for turn in (0, 1))
    with serving(run, serve):
        returned = held()
        before = held.numbers(returned)
        other()
        for name, x in other.now().arrays.items():
            run.framework.overwrite(held.native[name], x)
        for earlier, after in zip(before, held.numbers(returned), strict=True):
            assert_identical(after, earlier)


@law("A returned result belongs to the caller: writing to it changes neither later results nor arguments.", source="views of a table that is kept; arguments handed back",
     **everything, serve=served)  # fmt: skip
def test_returned_arrays_belong_to_the_caller(run, call, serve):
    """A result that cannot be written is no danger."""
    held = PreparedCall(run, example(run, call))
    with serving(run, serve):
        returned = held()
        now, before = held.now().arrays, held.numbers(returned)
        try:
            for part in returned:
                run.framework.overwrite(part, np.full(tuple(part.shape), -7, run.numpy_dtype))
            after = held.now().arrays
            for name, x in now.items():
                assert_identical(after[name], x, what=name)
            again = PreparedCall(run, example(run, call))
            assert_same(run, again.call, again.results(), before, what="later result")
        finally:  # where the law is broken, the other laws meet what they would have met without it
            for part, x in zip(returned, before, strict=True):
                run.framework.overwrite(part, x)


@law("If an argument is overwritten in place, the next call uses its new numbers, for each argument alone.", source="results cached by the object instead of its contents", **arrays,
     serve=served, which=range(1000))  # fmt: skip
def test_arguments_are_read_anew(run, call, serve, which):
    """All of them, one, or one matrix of a layer's weights: what is cached by one array may be computed from another."""
    held, other = PreparedCall(run, example(run, call)), example(run, call, turn=1)
    chosen = chosen_of(held.call, which)
    with serving(run, serve):
        held()
        for name in chosen:
            if not run.framework.overwrite(held.native[name], other.arrays[name]):
                raise UnsupportedCase("arrays that cannot be written cannot change")
        changed = held.now()
        results = held.results()  # before another call, which would be the one that is remembered
        wanted = PreparedCall(run, changed).results()
        assert_same(run, changed, results, wanted, what="result for what the arrays hold now")


def chosen_of(call, which):
    """The names of all arrays (0), or those of one argument: of a mapping half of the time a single one."""
    parts = [*call.arguments, *(name for name in call.options if name in call.arrays)]
    part = ["", *parts][which % (len(parts) + 1)]
    names = [name for name in call.arrays if part in ("", name) or name.startswith(f"{part}.")]
    deeper = which // (len(parts) + 1)
    return names if part in ("", *call.arrays) or deeper % 2 == 0 else [names[deeper // 2 % len(names)]]


@law("Memory layout does not matter, for each argument alone.", source="strides assumed contiguous", **arrays, which=range(1000),
     layout=STRIDED)  # fmt: skip
def test_arguments_may_lie_anywhere(run, call, which, layout):
    given = example(run, call)
    held = PreparedCall(run, given, dict.fromkeys(chosen_of(given, which), layout))
    assert_same(run, given, held.results(), PreparedCall(run, given).results())


@law("The type of integers does not matter: the result is right, or the type is refused.", source="32-bit positions read from a 64-bit array, and the other way round",
     operation=tuple(n for n, form in OPERATION_SPECS.items() if form.takes_integers), call=calls(),
     dtype=("int64", "int32", "int16", "uint8"))  # fmt: skip
def test_integers_of_any_type(run, call, dtype):
    given = example(run, call)
    integers = {name: x.astype(dtype) for name, x in given.arrays.items() if x.dtype.kind in "iu"}
    assume(integers)
    try:
        results = PreparedCall(run, given.but(integers)).results()
    except (TypeError, ValueError, RuntimeError, IndexError):
        return
    assert_same(run, given, results, PreparedCall(run, given).results())


@law("The same call again gives the same bits, if that is declared.", source="determinism; state kept between calls", exact=True, **everything,
     when=lambda run: None if run.semantics["deterministic"] == "yes" else "not declared: deterministic")  # fmt: skip
def test_repeated_calls_give_the_same_bits(run, call):
    held = PreparedCall(run, example(run, call))
    for first, second in zip(held.results(), held.results(), strict=True):
        assert_identical(second, first)


@law("A result is right whether gradients are recorded or not, and whichever argument asks for one.", source="a loss of zero unless its scores ask for a gradient, linkedin/Liger-Kernel#507",
     **arrays, recorded=("", "gradients", "no_grad", "inference_mode"))  # fmt: skip
def test_results_do_not_depend_on_recording(run, call, recorded):
    """Of every third call each keyword is left out that can be."""
    held = PreparedCall(run, example(run, call))
    exact, results = held.call.exact(run), None
    if recorded == "gradients" and run.offers("gradients"):
        results = recorded_results(run, held, exact)
    if results is None:
        with run.framework.inference("" if recorded == "gradients" else recorded):
            results = held.results()
    for got, part in zip(results, exact, strict=True):
        assert_within_bound(run.within(got, part), part.value, what="result")


def recorded_results(run, held, exact):
    """The parts of the result as they are while gradients are recorded; None if the function records none."""
    above = (np.ones(part.shape, run.numpy_dtype) for part in exact)
    try:
        return held.gradients(tuple(run.framework.from_numpy(x, run.device) for x in above))
    except UnsupportedCase:
        return None


@law("A call leaves the process as it was: random generators, default dtype, gradient mode, threads.", source="a seed set, or a mode switched on, inside a layer", exact=True,
     **everything, weight=0.4)  # fmt: skip
def test_calls_leave_the_process_alone(run, call):
    held = PreparedCall(run, example(run, call))
    with run.framework.restored():
        run.framework.stir()
        before = run.framework.global_state()
        held()
        changed = process_settings.differences(before, run.framework.global_state())
    assert_true(not changed, f"the call changed {'; '.join(changed)}")


@law(
    "Calls in several threads do not disturb one another.",
    source="one scratch buffer for all callers",
    **everything,
    when=unfit,
    weight=0.1,
)
def test_concurrent_calls_do_not_disturb(run, call):
    given = [example(run, call, turn) for turn in range(3)]
    alone = [PreparedCall(run, variant).results() for variant in given]
    held = [PreparedCall(run, variant) for variant in given * 12]
    for i, results in enumerate(together(run, [prepared.results for prepared in held])):
        turn = i % len(given)
        assert_same(run, given[turn], results, alone[turn], what=f"result of call {i}")
