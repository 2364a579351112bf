"""What is said of a cell: broken, not verified, holds for what was verified, or all laws hold; and the exit code of each."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from qkverify import verify
from qkverify.cli.main import app
from qkverify.contract import describe, registry
from qkverify.contract.unknown_parameters import sentence
from qkverify.errors import LawViolation, NotVerified, UnsupportedCase, UsageError
from qkverify.exports.file_formats import junit
from qkverify.problem.attention_problem import Problem
from qkverify.report import headline
from qkverify.report.model import Report
from qkverify.report.sections import verdicts as verdicts_section
from qkverify.results import ImplementationInfo, Tested, Verdict
from qkverify.runs.assertions import assert_within_bound
from qkverify.runs.run import Run
from qkverify.timing.marks import Known
from qkverify.verification import mutation_testing, outcomes
from qkverify.verification.checking import Cell, applicable, check_cell, law_book, outcome_of, plan
from qkverify.verification.outcomes import BROKEN, HOLDS, NOT_VERIFIED, PARTLY, CellOutcome, lines, of_cell

# -- the words, from verdicts alone -----------------------------------------------------------------------------------


def verdict(law="law", outcome="passed", reason="", used=(), dtype="float32", **tested):
    """A verdict that says what was tested, unless that is None (an old file, or a law that was not tried)."""
    said = None if tested == {"tested": None} else Tested(**{"calls": 9, **tested})
    return Verdict(law=law, family="attention", sentence="It holds.", exact=False, implementation="mine", device="cpu",
                   dtype=dtype, outcome=outcome, reason=reason, examples=5, used=list(used), tested=said)  # fmt: skip


RIGHT = verdict("agrees", results=4)
REFUSED = verdict("agrees", "not offered", calls=6, refused=6, refusal="not today")
UNFIT = verdict("masks", "not offered", "not offered: mask", tested=None)


def test_all_laws_hold_where_results_were_compared():
    said = of_cell([RIGHT, verdict("consistent"), UNFIT])
    assert (said.word, str(said), said.compared, said.exit_code(strict=True)) == (
        HOLDS,
        "all laws hold",
        4,
        0,
    )


@pytest.mark.parametrize("outcome", ["failed", "crashed", "timed out", "error"])
def test_what_is_broken_is_broken_whatever_else_was_verified(outcome):
    for others in ([RIGHT], [REFUSED], []):
        said = of_cell([*others, verdict("causal", outcome)], unknown=["pad_mask"])
        assert (said.word, said.exit_code()) == (BROKEN, 1)
        assert str(said).startswith("broken: 1 law; not verified: pad_mask (unknown; did you mean")


@pytest.mark.parametrize(
    ("verdicts", "reason"),
    [
        ([], "no law was run on it"),
        ([verdict(outcome="unavailable", reason="no CUDA device")], "no CUDA device"),
        ([UNFIT, UNFIT], "no law applies: not offered: mask"),
        (
            [verdict(outcome="not offered", calls=0)],
            "no generated problem reached the function: it requires B == 7",
        ),
        ([REFUSED, REFUSED], "it refused all 12 calls: 'not today'"),
        # Refusing the wrong sizes is a law that holds, and it is none about results.
        ([REFUSED, verdict("raises", calls=2, refused=2)], "it refused all 8 calls: 'not today'"),
        ([verdict(calls=9, refused=8, refusal="K must be 1")], "it refused 8 of 9 calls: 'K must be 1'"),
        ([verdict("consistent"), verdict("pure")], "2 laws called it 18 times, but no result was compared"),
        ([verdict(results=1), verdict("other", results=1)], "only 2 results compared with the reference"),
    ],
)
def test_nothing_or_next_to_nothing_is_not_verified_and_the_reason_is_said(verdicts, reason):
    said = of_cell(verdicts, requires=["B == 7"])
    assert (said.word, said.exit_code()) == (NOT_VERIFIED, 4)
    assert said.reason.startswith(reason)
    assert str(said) == f"NOT VERIFIED: {said.reason}"


def test_few_results_are_too_few_where_most_laws_met_no_problem():
    unmet = [verdict(f"unmet {i}", "not offered", calls=0) for i in range(3)]
    few = of_cell([verdict(results=4), *unmet], requires=["K % 128 == 0"])
    assert few.word == NOT_VERIFIED
    assert few.reason == (
        "only 4 results compared with the reference, and 3 of 4 laws had no problem to check: "
        "it takes none of the generated problems: it requires K % 128 == 0"
    )
    enough = of_cell([verdict(results=5), *unmet])
    assert (enough.word, enough.not_verified) == (
        PARTLY,
        ("3 of 4 laws (they had no problem that it takes)",),
    )
    assert of_cell([verdict(results=4), verdict("consistent"), *unmet[:2]]).word == HOLDS


def test_what_was_not_verified_is_named():
    said = of_cell(
        [verdict(results=4, used=["causal"])], offers=["causal", "window"], unknown=["pad_mask", "**kwargs"]
    )
    assert str(said) == (
        "laws hold for what was verified; not verified: "
        "pad_mask (unknown; did you mean key_lengths or mask?), window (offered, but no law used it)"
    )
    assert (said.word, said.exit_code(), said.exit_code(strict=True)) == (PARTLY, 0, 4)


def test_gradients_are_verified_where_they_were_compared():
    offers = ["gradients"]
    used = verdict("pure", used=["gradients"], results=4)
    assert of_cell([used], offers=offers).not_verified == (
        "gradients (none was compared with the reference)",
    )
    assert of_cell([used, verdict("vjp", gradients=1)], offers=offers).word == HOLDS
    assert of_cell([RIGHT], offers=offers).not_verified == ("gradients (offered, but no law used it)",)


def test_most_problems_refused_is_said():
    said = of_cell([verdict(calls=10, refused=6, results=4, refusal="K must be even")])
    assert said.not_verified == ("most problems (it refused 6 of 10 calls: 'K must be even')",)
    assert of_cell([verdict(calls=10, refused=5, results=4)]).word == HOLDS


def test_known_findings_are_said_in_the_last_line():
    verdicts = [
        RIGHT,
        verdict("zero_scale", "finding", "findings/nan", results=1),
        verdict("nan", "finding", "findings/x"),
    ]
    assert lines({"one": of_cell(verdicts)}) == [
        "all other laws hold in 1 configuration; 2 known failures: zero_scale (findings/nan), nan (findings/x)"
    ]


def test_files_from_before_it_was_noted_accuse_nobody():
    old = [verdict(tested=None), verdict("other", tested=None)]
    assert (of_cell(old).word, of_cell(old).compared) == (HOLDS, None)


def test_of_selected_laws_no_more_is_said_than_that_they_hold():
    said = of_cell([verdict("pure")], offers=["window"], unknown=["pad"], laws=10)
    assert str(said) == (
        "1 selected law holds; not verified: pad (unknown; did you mean key_lengths or mask?), "
        "results (none was compared with the reference)"
    )
    assert str(of_cell([RIGHT], offers=["window"], laws=10)) == "1 selected law holds"
    assert of_cell([REFUSED], laws=10).word == NOT_VERIFIED
    none = of_cell([UNFIT], laws=10)
    assert (str(none), none.applied) == ("NOT VERIFIED: no law applies: not offered: mask", False)


def test_leaving_one_law_out_does_not_hide_that_nothing_was_verified():
    most = [verdict(f"pure {i}") for i in range(9)]
    assert of_cell(most, laws=10).word == of_cell(most).word == NOT_VERIFIED


def test_broken_wins_over_not_verified_and_that_over_the_rest():
    broken, silent = CellOutcome(BROKEN, broken=("causal",)), CellOutcome(NOT_VERIFIED, "why")
    partly, holds = CellOutcome(PARTLY, not_verified=("window",)), CellOutcome(HOLDS)
    for cells, code, strict in (
        ([holds, silent, broken], 1, 1),
        ([holds, silent], 4, 4),
        ([holds, partly], 0, 4),
        ([holds], 0, 0),
        ([], 4, 4),
    ):
        assert (outcomes.exit_code(cells), outcomes.exit_code(cells, strict=True)) == (code, strict)


def test_cells_are_told_apart_where_they_differ():
    silent, partly = CellOutcome(NOT_VERIFIED, "why"), CellOutcome(PARTLY, not_verified=("window",))
    holds, broken = CellOutcome(HOLDS), CellOutcome(BROKEN, broken=("causal", "mask"))
    assert lines({"a": holds, "b": holds}) == ["all laws hold in 2 configurations"]
    assert lines({"a": silent}) == ["NOT VERIFIED: why"]
    assert lines({"a": silent, "b": silent}) == ["NOT VERIFIED in 2 configurations: why"]
    assert lines({"a": holds, "b": silent}) == [
        "a: all laws hold",
        "b: NOT VERIFIED: why",
        "NOT VERIFIED: 1 of 2 configurations",
    ]
    assert (
        lines({"a": holds, "b": partly})[-1]
        == "laws hold for what was verified in 2 configurations; not verified: window"
    )
    assert lines({"a": silent, "b": broken, "c": partly})[-1] == "broken: 2 laws; not verified: window"
    assert lines({"b": broken}, "1 cause, 2 laws") == ["broken: 1 cause, 2 laws"]
    assert (
        lines({str(i): holds for i in range(9)} | {"x": silent})[0]
        == "0, 1, 2, 3, 4 and 4 more: all laws hold"
    )


# -- which examples compare a result with the reference ----------------------------------------------------------------


def softmax_attention(query, key, value, scale=None):
    scores = (
        query
        @ np.swapaxes(key, -1, -2)
        * query.dtype.type(query.shape[-1] ** -0.5 if scale is None else scale)
    )
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights @ value / weights.sum(-1, keepdims=True)


def attention(query, key, value):
    return softmax_attention(query, key, value)


def pull(query, key, value, upstream):
    """The gradients of value alone are right."""
    keys = key.shape[2]
    weights = softmax_attention(
        query, key, np.broadcast_to(np.eye(keys, dtype=key.dtype), (*key.shape[:2], keys, keys))
    )
    return np.zeros_like(query), np.zeros_like(key), np.swapaxes(weights, -1, -2) @ upstream


PLAIN = {"arrays": "numpy", "dtypes": ("float32",), "requires": ("G == H", "K >= 1")}


def problem(keys=3, ones=False, **more):
    rng = np.random.default_rng(0)
    value = rng.standard_normal((1, 2, keys, 4)) * (not ones)
    query, key = rng.standard_normal((1, 2, 5, 4)), rng.standard_normal((1, 2, keys, 4))
    return Problem(
        **{n: x.astype("float32") for n, x in {"query": query, "key": key, "value": value}.items()}, **more
    )


def compared(law, vjp=None):
    """What one example counts, whose body is `law(run)`."""
    run = Run(describe(attention, vjp=vjp, **PLAIN), dtype="float32")
    with run.activated():
        run.begin_example()
        law(run)
        run.compared.end_example()
    return dict(run.compared.examples)


def test_a_result_and_its_parts_count_once_an_example():
    given = problem()

    def law(run):
        result = run(given)
        assert_within_bound(result, run.exact(given))
        assert_within_bound(result[:, 0], run.exact(given)[:, 0])

    assert compared(law) == {"result": 1}
    assert compared(lambda run: assert_within_bound(run(given)[0, 1], run.exact(given)[0, 1])) == {
        "result": 1
    }


@pytest.mark.parametrize(
    "law",
    [
        lambda run: run(problem()),
        lambda run: assert_within_bound(run(problem()), run(problem())),
        lambda run: assert_within_bound(run(problem()) - run(problem()), 0.0),
        lambda run: assert_within_bound(run(problem()).sum(-1), run.exact(problem()).sum(-1)),
        lambda run: assert_within_bound(run(problem(ones=True)), run.exact(problem(ones=True))),
        lambda run: assert_within_bound(run(problem(keys=1)), run.exact(problem(keys=1))),
    ],
    ids=["nothing compared", "two results", "difference", "sums", "zeros would pass", "single key"],
)
def test_what_says_nothing_of_a_result_does_not_count(law):
    assert compared(law) == {}


def test_gradients_count_by_themselves():
    given = problem()
    given = given.replace(upstream=given.query)

    def law(run):
        exact = run.gradient_bounds(given)["value"]
        part = run.gradient_values(given)["value"][:, :1]
        assert_within_bound(run.within(part, exact[:, :1]), exact.value[:, :1])

    assert compared(law, vjp=pull) == {"gradients": 1}


def test_an_example_that_does_not_come_to_its_end_does_not_count():
    run = Run(describe(attention, **PLAIN), dtype="float32")
    given = problem()
    with run.activated():
        run.begin_example()
        assert_within_bound(run(given), run.exact(given))
        run.begin_example()
        run.compared.end_example()
    assert not run.compared.examples


# -- whole cells -------------------------------------------------------------------------------------------------------

# A few laws of each kind, and fewer for what no problem meets: Hypothesis looks long for one.
FEW_LAWS = ("agrees_with_reference", "constant_values_are_returned", "equal_scores_share_equally", "mismatched_sizes_raise",
            "inputs_are_not_written", "single_key_gets_all")  # fmt: skip
UNMET_LAWS = ("agrees_with_reference", "inputs_are_not_written")


def said_of(function, *, names=FEW_LAWS, every=False, profile=5, **declared):
    """What is said of a function in its first dtype, by the named laws or by every one."""
    implementation = describe(function, **{**PLAIN, **declared})
    cell = Cell(replace(implementation, declared=True), "cpu", implementation.dtypes[0])
    laws = [law for law in law_book() if every or law.name in names]
    return outcome_of(cell, list(check_cell(cell, laws, examples=profile)))


def refuses(query, key, value):
    raise NotImplementedError("not today")


def refuses_as_told(query, key, value):
    raise UnsupportedCase("not ever\x1b[31m")


def takes_one_key(query, key, value):
    if key.shape[2] != 1:
        raise NotImplementedError("K must be 1")
    return softmax_attention(query, key, value)


def takes_even_keys(query, key, value):
    if key.shape[2] % 2:
        raise NotImplementedError("K must be even")
    return softmax_attention(query, key, value)


def autotuned(query, key, value):
    raise RuntimeError("no valid configuration")


def zeros(query, key, value):
    return np.zeros((*query.shape[:3], value.shape[3]), query.dtype)


def test_a_right_kernel_holds():
    said = said_of(attention, every=True)
    assert said.word == HOLDS
    assert said.compared > 20


@pytest.mark.parametrize(
    ("requires", "reason"),
    [
        (("B == 7", "K >= 1"), "no generated problem reached the function: it requires B == 7, K >= 1"),
        (
            ("D == 512", "K >= 1"),
            "no generated problem reached the function: it requires D == 512, K >= 1",
        ),
        (
            ("G == H", "K == 1024"),
            "no generated problem reached the function: it requires G == H, K == 1024",
        ),
        (
            ("G == H", "Q == K", "K % 128 == 0", "D == 512", "E == D"),
            "it requires G == H, Q == K, K % 128 == 0, D == 512",
        ),
    ],
)
def test_what_no_problem_meets_is_not_verified(requires, reason):
    said = said_of(attention, names=UNMET_LAWS, requires=requires)
    assert (said.word, said.exit_code()) == (NOT_VERIFIED, 4), str(said)
    assert reason in said.reason


@pytest.mark.parametrize(
    ("function", "declared", "reason"),
    [
        (attention, {"requires": ("G == H", "K == 1")}, "no result was compared"),
        (refuses, {}, "it refused all "),
        (refuses_as_told, {}, "calls: 'not ever\\x1b[31m'"),
        (takes_one_key, {}, "calls: 'K must be 1'"),
    ],
)
def test_what_was_not_put_to_the_test_is_not_verified(function, declared, reason):
    said = said_of(function, **declared)
    assert (said.word, said.exit_code()) == (NOT_VERIFIED, 4), str(said)
    assert reason in said.reason


def test_a_single_example_of_every_law_is_not_enough():
    said = said_of(attention, every=True, profile=1)
    assert said.word == NOT_VERIFIED
    assert "at most one by each law" in said.reason


@pytest.mark.parametrize("effort", [0.1, 0.001])
def test_a_small_effort_leaves_enough_examples_to_be_verified(effort):
    assert said_of(attention, effort={"cpu": effort}).word == HOLDS


@pytest.mark.parametrize("function", [autotuned, zeros])
def test_what_raises_on_every_call_or_computes_nothing_is_broken(function):
    assert said_of(function).word == BROKEN


def test_a_kernel_that_refuses_most_of_what_it_is_asked_holds_for_the_rest_alone():
    said = said_of(takes_even_keys, profile=25)
    assert said.word == PARTLY
    assert "calls: 'K must be even'" in str(said)
    assert said_of(attention, requires=("G == H", "K >= 1", "K % 2 == 0"), profile=25).word == HOLDS


def test_one_dtype_refused_and_another_verified_are_two_words():
    def half_less(query, key, value):
        if query.dtype == np.float16:
            raise NotImplementedError("no half precision")
        return softmax_attention(query, key, value)

    by_dtype = {dtype: said_of(half_less, dtypes=(dtype,)) for dtype in ("float32", "float16")}
    assert [outcome.word for outcome in by_dtype.values()] == [HOLDS, NOT_VERIFIED]
    first, second, last = lines(by_dtype)
    assert (first, last) == ("float32: all laws hold", "NOT VERIFIED: 1 of 2 configurations")
    assert second.startswith("float16: NOT VERIFIED: it refused all ")


def test_no_law_at_all_is_no_verdict():
    cell = Cell(describe(attention, **PLAIN), "cpu", "float32")
    assert outcome_of(cell, list(check_cell(cell, []))).reason == "no law was run on it"


@pytest.mark.parametrize("name", ["numpy_encoding", "numpy_rotary", "numpy_slopes", "numpy_embedding",
                                  "numpy_cached", "numpy_paged", "numpy_packed", "numpy_decoder"])  # fmt: skip
def test_our_own_implementations_hold_at_the_smallest_profile(name):
    (implementation,) = registry.find(name)
    cell = Cell(implementation, "cpu", "float32", name)
    assert str(outcome_of(cell, list(check_cell(cell, examples=5)))) == "all laws hold"


# -- parameters that the contract does not know ------------------------------------------------------------------------


def unknown_of(signature):
    """What is said of the unknown parameters of a function with this signature."""
    scope = {}
    exec(f"def {signature}: pass", scope)  # a literal of this file
    implementation = describe(
        next(value for name, value in scope.items() if not name.startswith("__")), arrays="numpy"
    )
    return {
        name: sentence(name, implementation.operation, implementation.offers)
        for name in implementation.unknown
    }


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("pad_mask", "key_lengths or mask"),
        ("keyPaddingMask", "key_lengths or mask"),
        ("kv_lens", "key_lengths"),
        ("attention", "mask or bias"),
        ("attn", "mask or bias"),
        ("rel_pos_bias", "bias"),
        ("slopes", "alibi_slopes"),
        ("sliding_window", "window"),
        ("logits_cap", "softcap"),
        ("attn_drop", "dropout"),
        ("temperature", "scale"),
        ("sclae", "scale"),
        ("causal_mask", "causal"),
        ("training", ""),
        ("rng", ""),
    ],
)
def test_an_unknown_parameter_is_named_with_what_may_be_meant(name, meant):
    question = f"; did you mean {meant}?" if meant else ""
    assert (
        unknown_of(f"attention(q, k, v, *, scale_=None, {name}=None)")[name]
        == f"unknown, not verified{question}"
    )


def test_what_is_offered_already_is_not_suggested():
    assert unknown_of("attention(q, k, v, *, mask=None, pad_mask=None)") == {
        "pad_mask": "unknown, not verified; did you mean key_lengths?"
    }


def test_names_of_every_library_are_known():
    for names in ("attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False",
                  "dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None",
                  "mask=None, bias=None, window=None, sinks=None, key_lengths=None, return_lse=False"):  # fmt: skip
        assert unknown_of(f"attention(q, k, v, {names})") == {}


def test_an_option_that_the_convention_lacks_is_named():
    said = unknown_of("attention(q, k, v, attn_mask=None, is_causal=False, dropout_p=0.0, window=None)")
    assert said == {
        "window": "unknown, not verified: its other parameters follow a library's names, which do not include this one"
    }


def test_open_parameters_are_worth_a_word():
    said = unknown_of("attention(q, k, v, *rest, **kwargs)")
    assert list(said) == ["*rest", "**kwargs"]
    assert "no law passes anything through it" in said["**kwargs"]


@pytest.mark.parametrize(
    ("signature", "said"),
    [
        ("cross_entropy(scores, targets, smooth=0.0)", "; did you mean smoothing?"),
        ("softmax(x, temperature=1.0)", ""),
        ("rotary(x, positions, *, interleaved=True)", "; did you mean layout?"),
        ("multi_head_attention(x, w_q, w_k, w_v, w_o, num_heads)", "; did you mean heads?"),
    ],
)
def test_other_operations_know_their_options_alone(signature, said):
    assert list(unknown_of(signature).values()) == [f"unknown, not verified{said}"]


def test_no_implementation_of_ours_has_an_unknown_parameter():
    every = [
        *registry.load_folder(),
        *mutation_testing.planted("mutants"),
        *mutation_testing.planted("controls"),
    ]
    assert {
        implementation.name: implementation.unknown for implementation in every if implementation.unknown
    } == {}


# -- where it is said ----------------------------------------------------------------------------------------------------

KERNELS = """
import numpy as np
from qkverify import implementation

def right(query, key, value):
    scores = query @ np.swapaxes(key, -1, -2) * query.dtype.type(query.shape[-1] ** -0.5)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights @ value / weights.sum(-1, keepdims=True)

@implementation(name="refuses", dtypes="float32", requires=("G == H", "K >= 1"))
def refuses(query, key, value):
    raise NotImplementedError("not today")

@implementation(name="padded", dtypes="float32", requires=("G == H", "K >= 1"))
def padded(query, key, value, *, pad_mask=None):
    return right(query, key, value)

@implementation(name="right", dtypes="float32", requires=("G == H", "K >= 1"))
def plain(query, key, value):
    return right(query, key, value)

@implementation(name="elsewhere", dtypes="float32", available=lambda device: "no such card")
def elsewhere(query, key, value):
    return right(query, key, value)
"""


@pytest.fixture(scope="module")
def kernels(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("outcomes") / "kernels.py"
    path.write_text(KERNELS)
    return path


def qkverify(capsys, *arguments):
    """Exit code, and the lines that were printed."""
    code = app([*arguments, "--profile", "glance"], standalone_mode=False)
    return code, [line for line in capsys.readouterr().out.splitlines() if line]


def test_the_command_ends_with_the_reason_and_exit_code_4(kernels, capsys):
    code, said = qkverify(capsys, "verify", f"{kernels}:refuses")
    assert code == 4, said
    assert said[-1].startswith("NOT VERIFIED: it refused all ")
    assert not any("all laws hold" in line or (" exact" in line and " 0 laws" in line) for line in said)


def test_a_child_of_the_program_itself_is_left_alone(kernels, capsys):
    """As pytest's, which may hold a browser: no target left it behind."""
    child = subprocess.Popen(["sleep", "100"])
    try:
        code, said = qkverify(capsys, "verify", f"{kernels}:plain", "--law", "agrees_with_reference")
        assert code == 0, said
        assert child.poll() is None
    finally:
        child.kill()
        child.wait()


def test_several_targets_get_a_word_each(kernels, capsys, tmp_path):
    targets = [f"{kernels}:{name}" for name in ("plain", "padded", "elsewhere")]
    code, said = qkverify(capsys, "verify", *targets, "--junit", str(tmp_path / "out.xml"))
    assert code == 4, said
    assert said[-1] == "NOT VERIFIED: 1 of 3 configurations"
    assert "right-cpu-float32: all laws hold" in said
    assert f"{kernels}:elsewhere: NOT VERIFIED: it cannot run here: cpu: no such card" in said
    suites = {suite.get("name"): suite for suite in ET.parse(tmp_path / "out.xml").iter("testsuite")}
    told = suites["padded cpu float32"].find("properties/property[@name='outcome']")
    assert told.get("value").startswith("laws hold for what was verified; not verified: pad_mask (unknown")


def test_strict_wants_all_that_is_offered_verified(kernels, capsys):
    code, said = qkverify(capsys, "verify", f"{kernels}:padded", "--strict")
    assert code == 4, said
    assert "  pad_mask: unknown, not verified; did you mean key_lengths or mask?" in said
    assert said[-1] == (
        "laws hold for what was verified in 1 configuration; not verified: "
        "pad_mask (unknown; did you mean key_lengths or mask?)"
    )


def test_a_target_that_cannot_run_here_is_no_success(kernels, capsys):
    code, said = qkverify(capsys, "verify", f"{kernels}:elsewhere")
    assert (code, said[-1]) == (4, "NOT VERIFIED: it cannot run here: cpu: no such card")
    with pytest.raises(NotVerified, match="elsewhere: NOT VERIFIED: it cannot run here: cpu: no such card"):
        verify(f"{kernels}:elsewhere").raise_for_failures()


def test_devices_and_dtypes_that_a_target_does_not_have_are_a_mistake(kernels):
    why = "it declares float32 on cpu, and others were requested"
    assert list(plan([f"{kernels}:plain"], dtypes=["float16"]).idle.values()) == [why]
    with pytest.raises(UsageError, match=f"nothing can be verified here\n.*{why}"):
        verify(f"{kernels}:plain", dtypes=["float16"])


def test_python_raises_where_nothing_was_verified(kernels):
    silent = verify(f"{kernels}:refuses", profile="glance")
    assert silent.failures == []
    with pytest.raises(NotVerified, match="refuses-cpu-float32: NOT VERIFIED: it refused all"):
        silent.raise_for_failures()
    partly = verify(f"{kernels}:padded", profile="glance")
    partly.raise_for_failures()
    assert partly.unverified == {"padded-cpu-float32": ["pad_mask"]}
    for check in (partly.raise_for_failures, partly.raise_if_not_verified):
        with pytest.raises(NotVerified, match="not verified: pad_mask"):
            check(strict=True)
    assert not issubclass(NotVerified, LawViolation)
    with pytest.raises(NotVerified, match="nothing was verified"):
        type(partly)().raise_for_failures()


def pytest_in(folder: Path, *arguments: str) -> tuple[int, str]:
    """pytest's exit code and words on the law book, at glance."""
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--pyargs", "qkverify.properties",
               "--hypothesis-profile", "glance", "--dtype", "float32"]  # fmt: skip
    done = subprocess.run(
        [*command, *arguments], cwd=folder, env=alone, capture_output=True, text=True, timeout=300
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("processes", ["0", "2"])
def test_pytest_ends_with_status_4_where_nothing_was_verified(kernels, processes):
    if processes != "0":
        pytest.importorskip("xdist", reason="several processes need pytest-xdist")
    code, said = pytest_in(kernels.parent, "--implementation", "kernels.py:refuses", "-n", processes)
    assert code == 4, said
    assert "NOT VERIFIED: it refused all" in said
    assert "failed" not in said


def test_pytest_says_what_was_selected_and_claims_no_more(kernels):
    code, said = pytest_in(
        kernels.parent, "--implementation", "kernels.py:plain", "-k", "inputs_are_not_written"
    )
    assert code == 0, said
    assert "1 selected law holds in 1 configuration" in said
    assert "results (none was compared with the reference)" in said
    code, said = pytest_in(kernels.parent, "--implementation", "kernels.py:plain", "-k", "mqa")
    assert code == 0, said  # skipped tests, as elsewhere
    assert "what was verified" not in said


def test_pytest_is_strict_where_that_is_asked(kernels):
    code, said = pytest_in(kernels.parent, "--implementation", "kernels.py:padded", "--strict-verification")
    assert code == 4, said
    assert "not verified: pad_mask (unknown; did you mean key_lengths or mask?)" in said


INFO = ImplementationInfo(name="mine", operation="attention", summary="", arrays="numpy", file="mine.py",
                          dtypes=["float32", "float16"], devices=["cpu"], unknown=["pad_mask"])  # fmt: skip
SILENT = [verdict("agrees", "not offered", "not today", dtype="float16", calls=6, refused=6, refusal="not today"),
          verdict("raises", dtype="float16", calls=2, refused=2)]  # fmt: skip


def test_the_page_calls_nothing_verified_that_was_not():
    report = Report([INFO, *SILENT])
    (cell,) = report.cells
    assert (cell.outcome, verdicts_section.words(cell)) == ("not verified", ("not verified", ""))
    assert headline.of(report).state == "empty"
    assert headline.sentence(report) == "Nothing was verified in this run"
    page = str(verdicts_section.html(report))
    assert 'class="not-verified"' in page
    assert 'class="passed"' not in page.partition('<div class="matrices">')[2]
    assert "it refused all 8 calls" in page
    assert "? not verified" in verdicts_section.markdown(report)


def test_the_page_names_what_was_not_verified_beside_what_holds():
    report = Report([INFO, RIGHT, *SILENT])
    assert [cell.outcome for cell in report.cells] == ["passed", "not verified"]
    assert headline.of(report).state == "empty"
    assert headline.sentence(report) == (
        "1 implementation was not verified in float16; every law holds for what was verified"
    )
    said = verdicts_section.markdown(report)
    assert "- not verified: it refused all 8 calls: 'not today': `mine`" in said
    assert "- not verified: pad_mask (unknown; did you mean key_lengths or mask?): `mine`" in said
    assert headline.of(Report([replace_unknown(INFO), RIGHT])).state == "good"


def replace_unknown(info: ImplementationInfo) -> ImplementationInfo:
    return ImplementationInfo(
        name=info.name, operation=info.operation, summary="", arrays=info.arrays, file=info.file
    )


def test_junit_has_an_error_for_a_suite_of_which_nothing_was_verified():
    root = ET.fromstring(junit.export([INFO, RIGHT, *SILENT], "verdicts"))
    suites = {suite.get("name"): suite for suite in root.iter("testsuite")}
    assert suites["mine cpu float32"].get("errors") == "0"
    silent = suites["mine cpu float16"]
    assert (silent.get("tests"), silent.get("errors"), root.get("errors")) == ("3", "1", "1")
    assert silent.find("testcase/error").get("message") == "NOT VERIFIED: it refused all 8 calls: 'not today'"


def test_a_time_says_that_its_implementation_was_not_verified():
    class Timed:
        direction, device, dtype = "forward", "cpu", "float16"
        implementation = describe(attention, name="mine", **PLAIN)

    (mark,) = Known(SILENT).marks(Timed())
    assert (mark.kind, mark.bars) == ("not verified", False)  # the check of the timed output decides
    assert mark.sentence == "not verified: it refused all 8 calls: 'not today'"
    assert Known([verdict(dtype="float16", results=4)]).marks(Timed()) == []


def test_every_law_of_an_operation_counts_for_what_was_selected():
    cell = Cell(describe(attention, **PLAIN), "cpu", "float32")
    book = applicable(law_book(), cell)
    assert outcome_of(cell, [RIGHT], len(book)).selected == (1, len(book))
