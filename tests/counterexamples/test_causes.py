"""Failures by what broke them: pure functions of verdicts, then whole runs of kernels with one mistake."""

from __future__ import annotations

import numpy as np
import pytest

from qkverify.contract import describe
from qkverify.counterexamples.calls_alone import judged
from qkverify.counterexamples.causes import causes, diagnosed, summary
from qkverify.problem.attention_problem import Problem
from qkverify.results import Counterexample, Verdict
from qkverify.runs.raising_conditions import CallShape, remedy, separating
from qkverify.verification.checking import Cell, checked, law_book, prepare, verify


def failed(law, *, dtype="float32", family="attention", outcome="failed", reason="", **facts):
    """The verdict of a law that is broken, with what was recorded of its counterexample."""
    given = {"got": "1", "location": "output[0]", **facts}
    message = diagnosed(f"{law}: a sentence.\n  got 1", given.get("diagnosis", ""))
    example = Counterexample(message=message, problem="", exact="", bound="", margin=None, replay="", **given)
    return Verdict(law=law, family=family, sentence="A sentence.", exact=False, implementation="mine", device="cpu",
                   dtype=dtype, outcome=outcome, reason=reason, counterexample=example)  # fmt: skip


def names(groups):
    return [sorted(cause.laws) for cause in groups]


def test_a_wrong_value_is_one_cause_whatever_its_laws_are_about():
    groups = causes([
        failed("empty_axes", family="contract", value_wrong=True, numbers=2),
        failed("agrees_with_reference", value_wrong=True, numbers=9),
        failed("same_call_twice", family="contract", value_wrong=True, numbers=1),
        failed("vjp_agrees_with_reference", family="gradients", value_wrong=True, gradient_wrong=True, numbers=3),
    ])  # fmt: skip
    assert len(groups) == 1
    assert groups[0].first.law == "agrees_with_reference"  # which is about the value
    assert summary(groups) == "1 cause, 4 laws"


def test_a_wrong_gradient_beside_right_values_is_a_cause_of_its_own():
    groups = causes([
        failed("agrees_with_reference", value_wrong=True),
        failed("vjp_agrees_with_reference", family="gradients", gradient_wrong=True),
        failed("linear_in_upstream", family="gradients", gradient_wrong=True),
    ])  # fmt: skip
    assert names(groups) == [["agrees_with_reference"], ["linear_in_upstream", "vjp_agrees_with_reference"]]


def test_two_diagnoses_are_two_causes():
    groups = causes(
        [failed("a", value_wrong=True, diagnosis="One."), failed("b", value_wrong=True, diagnosis="Another.")]
    )
    assert len(groups) == 2


def test_one_mistake_in_a_result_and_in_its_gradients_is_one_cause():
    groups = causes([
        failed("a", value_wrong=True, diagnosis="The result equals attention without a scale."),
        failed("b", gradient_wrong=True, diagnosis="The gradients are those of attention without a scale."),
        failed("c", gradient_wrong=True, diagnosis="The gradients are those without the scale."),
    ])  # fmt: skip
    assert names(groups) == [["a", "b"], ["c"]]


def test_an_exception_is_known_by_type_message_without_numbers_and_line():
    groups = causes([
        failed("a", exception="ValueError: 3 and 5 differ", line="mine.py:7  check(q, k)", location=""),
        failed("b", exception="ValueError: 2 and 17 differ", line="mine.py:7  check(q, k)", location=""),
        failed("c", exception="ValueError: 2 and 17 differ", line="mine.py:9  check(k, v)", location=""),
        failed("d", exception="TypeError: 2 and 17 differ", line="mine.py:7  check(q, k)", location="", value_wrong=True),
    ])  # fmt: skip
    assert names(groups) == [["a", "b"], ["c"], ["d"]]


def test_exceptions_of_several_texts_are_one_cause_where_one_condition_separates_them():
    groups = causes([
        failed("a", exception="ValueError: one", line="mine.py:7  x", raises_when=["G != H", "H > 1"], location=""),
        failed("b", exception="TypeError: two", line="mine.py:9  y", raises_when=["G != H"], location=""),
    ])  # fmt: skip
    assert len(groups) == 1
    assert groups[0].condition == "G != H"
    assert (
        '  raises             whenever G != H (2 laws): declare requires=("G == H",), or mend it'
        in groups[0].text()
    )


def test_another_dtype_without_a_diagnosis_joins_the_one_that_has_it():
    groups = causes([
        failed("a", value_wrong=True, diagnosis="One."),
        failed("a", dtype="bfloat16", value_wrong=True),
        failed("b", dtype="bfloat16", value_wrong=True),
    ])  # fmt: skip
    assert len(groups) == 1
    assert groups[0].dtypes == ["float32", "bfloat16"]
    assert groups[0].lines() == ["  also broken by this: 1 law: b (float32, bfloat16)"]


def test_what_another_dtype_does_not_explain_joins_each_of_two_causes_by_its_law():
    groups = causes([
        failed("a", value_wrong=True, diagnosis="One."),
        failed("b", value_wrong=True, diagnosis="Two."),
        *(failed(law, dtype="bfloat16", value_wrong=True) for law in "bac"),
    ])  # fmt: skip
    assert sorted(map(len, names(groups))) == [1, 2]  # c stands with the law that came first
    assert [cause.dtypes for cause in groups] == [["float32", "bfloat16"]] * 2


def test_what_is_left_unexplained_beside_a_diagnosis_stays_apart_in_every_dtype():
    groups = causes([
        failed("a", value_wrong=True, diagnosis="One."),
        failed("b", value_wrong=True),
        failed("a", dtype="bfloat16", value_wrong=True),
        failed("b", dtype="bfloat16", value_wrong=True),
    ])  # fmt: skip
    assert names(groups) == [["a"], ["b"]]
    assert [cause.dtypes for cause in groups] == [["float32", "bfloat16"]] * 2


def test_a_law_that_shows_no_wrong_value_joins_the_cause_that_breaks_it_in_another_dtype():
    groups = causes([
        failed("a", value_wrong=True, diagnosis="One."),
        failed("a", dtype="bfloat16"),
        failed("b", dtype="bfloat16"),
    ])  # fmt: skip
    assert names(groups) == [["a"], ["b"]]
    assert groups[0].dtypes == ["float32", "bfloat16"]


def test_a_law_that_two_causes_break_in_other_dtypes_joins_neither():
    groups = causes([
        failed("a", value_wrong=True, diagnosis="One."),
        failed("a", dtype="float64", value_wrong=True, diagnosis="Two."),
        failed("a", dtype="bfloat16"),
    ])  # fmt: skip
    assert len(groups) == 3


def test_many_names_are_shortened_and_none_is_lost_in_the_count():
    (cause,) = causes([failed(f"law_{n}", value_wrong=True) for n in range(9)])
    assert cause.also() == "8 laws: law_1, law_2, law_3, law_4 and 4 more"


def test_files_from_before_it_was_recorded_are_grouped_by_what_was_raised():
    groups = causes([failed("a", got="ran out of 3", location=""), failed("b", got="ran out of 4", location=""), failed("c"),
                    failed("d")])  # fmt: skip
    assert names(groups) == [["a", "b"], ["c"], ["d"]]


def test_what_holds_has_no_cause():
    assert causes([failed("a", outcome="passed"), failed("b", outcome="finding")]) == []


def test_a_diagnosis_stands_on_the_second_line_once():
    message = diagnosed(diagnosed("law: sentence.\n  got 1", "First."), "Second.")
    assert message == "law: sentence.\n  looks like         Second.\n  got 1"
    assert diagnosed(message, "") == "law: sentence.\n  got 1"


def call(*options, gradients=False, **sizes):
    given = {"B": 1, "H": 2, "G": 2, "Q": 3, "K": 3, "D": 4, "E": 4, **sizes}
    return CallShape(tuple(given.values()), frozenset(options), gradients, "", False)


RETURNED = {call(), call(Q=5), call(B=3), call(D=8, E=8), call(H=1, G=1), call("causal")}


@pytest.mark.parametrize(
    ("raised", "condition"),
    [
        ({call(G=1), call("causal", G=1, Q=7)}, "G != H"),
        ({call(E=3), call(E=2, Q=5)}, "E != D"),
        ({call("scale"), call("scale", "causal", Q=9)}, "scale is given"),
        ({call(gradients=True), call(gradients=True, B=2)}, "gradients are asked for"),
        ({call("scale", "bias"), call("scale", "bias", Q=9)}, "bias is given and scale is given"),
    ],
)
def test_the_simplest_condition_that_separates_all_calls(raised, condition):
    returned = RETURNED | ({call("scale"), call("bias")} if "and" in condition else set())
    assert separating(raised, returned)[0] == condition


SPARED = [
    ("G != H and G != 1", "G == H or G == 1",
     [call(H=4), call(H=6), call(H=6, G=3)], [call(G=1), call(G=1, H=3), call(G=1, H=4)]),
    ("Q != K and Q != 1", "Q == K or Q == 1",
     [call(Q=2), call(Q=5), call(K=9)], [call(Q=1), call(Q=1, K=7), call(Q=1, K=9)]),
    ("Q > K and K != 0", "Q <= K or K == 0",
     [call(Q=4), call(Q=5), call(Q=9, K=4)], [call(K=0), call(K=0, Q=1), call(K=0, Q=9)]),
    ("K % 16 != 0 and K > 16", "K % 16 == 0 or K <= 16",
     [call(K=17), call(K=33), call(K=40)], [call(K=3), call(K=7), call(K=15)]),
    ("D & (D - 1) != 0 and D >= 8", "D & (D - 1) == 0 or D < 8",
     [call(D=9), call(D=12), call(D=24)], [call(D=3), call(D=5), call(D=7)]),
]  # fmt: skip


@pytest.mark.parametrize(("condition", "rule", "raised", "spared"), SPARED)
def test_sizes_that_are_spared_are_part_of_the_condition(condition, rule, raised, spared):
    others = {call(Q=16, K=16), call(Q=32, K=32), call(Q=16, K=16, D=8, E=8), call(Q=48, K=48)}
    conditions = separating(set(raised), {*others, *spared})
    assert condition in conditions
    assert remedy(conditions[0]).startswith("declare requires=(")
    assert remedy(condition) == f'declare requires=("{rule}",), or mend it'


@pytest.mark.parametrize(("condition", "rule", "raised", "spared"), SPARED)
def test_a_condition_of_two_parts_wants_several_calls_on_every_side(condition, rule, raised, spared):
    others = {call(Q=16, K=16), call(Q=32, K=32), call(Q=16, K=16, D=8, E=8), call(Q=48, K=48)}
    assert condition not in separating(set(raised[:2]), {*others, *spared})
    assert condition not in separating(set(raised), {*others, *spared[:2]})
    assert condition not in separating(set(raised), {*spared, call(Q=16, K=16)})
    assert condition not in separating(set(raised), {*others, *spared, raised[0]})


def test_no_condition_is_said_that_one_call_contradicts():
    raised = {call(G=1), call(G=1, Q=7)}
    assert "G != H" not in separating(raised, {*RETURNED, call(G=1, B=3)})
    assert "G != H" not in separating({*raised, call(Q=2)}, RETURNED)
    assert separating(raised, {call()}) == []  # too few to tell


def test_a_remedy_is_what_the_declaration_takes():
    assert remedy("E != D") == 'declare requires=("E == D",), or mend it'
    assert remedy("mask is given and bias is given") == 'declare exclusive=(("mask", "bias"),), or mend it'
    assert remedy("causal is given") == "leave the parameter causal out, or mend it"
    assert remedy("gradients are asked for") == "mend it"


# -- whole runs ------------------------------------------------------------------------------------------------------------


def sizes_fit(q, k, v):
    return q.shape[:2] == k.shape[:2] and q.shape[3] == k.shape[3] and k.shape[:3] == v.shape[:3]


def core(q, k, v, causal, scale, *, late=False, off=0, lengths=None):
    """Plain attention in NumPy; `late` masks after the softmax, `off` moves the last key that a causal query sees."""
    if not sizes_fit(q, k, v):
        raise ValueError("sizes that do not fit one another")
    s = q @ np.swapaxes(k, -1, -2) * q.dtype.type(scale)
    visible = np.ones(s.shape, bool)
    if causal:
        visible &= np.tri(*s.shape[2:], s.shape[3] - s.shape[2] + off, dtype=bool)
    if lengths is not None:
        visible &= np.arange(s.shape[3]) < np.reshape(lengths, (-1, 1, 1, 1))
    s = s if late else np.where(visible, s, -np.inf)
    peak = s.max(-1, keepdims=True, initial=-np.inf)
    w = np.exp(s - np.where(np.isfinite(peak), peak, 0))
    total = w.sum(-1, keepdims=True)
    w = w / np.where(total == 0, 1, total)
    return (np.where(visible, w, 0) if late else w).astype(q.dtype) @ v


def default(q, scale):
    return q.shape[-1] ** -0.5 if scale is None else scale


def without_scale(q, k, v, *, causal=False, scale=None):
    return core(q, k, v, causal, 1.0)


def mask_after_softmax(q, k, v, *, causal=False, scale=None):
    return core(q, k, v, causal, default(q, scale), late=True)


def off_by_one(q, k, v, *, causal=False, scale=None):
    return core(q, k, v, causal, default(q, scale), off=-1)


def reads_padding(q, k, v, *, causal=False, scale=None, key_lengths=None):
    return core(q, k, v, causal, default(q, scale))


def cell_of(function, requires=("G == H",)):
    implementation = describe(function, arrays="numpy", dtypes=("float32",), requires=requires, empty_rows="zero",
                   causal_alignment="bottom-right")  # fmt: skip
    return Cell(implementation, "cpu", "float32")


PLANTED = {
    without_scale: "The result equals attention without a scale.",
    mask_after_softmax: "The result equals attention whose weights are masked after the softmax and not normalised again.",
    off_by_one: "The result equals attention whose queries do not see their own position.",
    reads_padding: "The result equals attention without the key lengths: padding is read.",
}


@pytest.mark.parametrize("function", PLANTED)
def test_one_mistake_is_one_cause_with_its_sentence_on_top(function, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    laws = [law for law in law_book() if law.family in ("attention", "masking", "contract")]
    groups = causes(checked(cell_of(function), laws, examples=25))
    assert len(groups) == 1, [cause.text() for cause in groups]
    lines = groups[0].text().splitlines()
    assert lines[1].startswith("  looks like         ")
    assert lines[1].removeprefix("  looks like         ") == PLANTED[function]
    assert sum("smallest problem" in line for line in lines) == 1
    assert "also broken by this" in lines[-1]


def test_a_class_of_sizes_that_raises_is_said_once(monkeypatch, tmp_path):
    def equal_heads(q, k, v, *, causal=False, scale=None):
        return core(q, k, v, causal, default(q, scale))

    monkeypatch.chdir(tmp_path)
    groups = causes(checked(cell_of(equal_heads, requires=("Q >= 1",)), examples=10))
    assert len(groups) == 1
    assert groups[0].condition == "G != H"
    assert 'declare requires=("G == H",), or mend it' in groups[0].text()
    assert "looks like" not in groups[0].text()


def test_heads_that_broadcast_are_spared_by_the_condition(monkeypatch, tmp_path):
    def equal_heads_or_one(q, k, v, *, scale=None):
        if q.shape[1] != k.shape[1] != 1:
            raise ValueError(f"{q.shape[1]} heads and {k.shape[1]}")
        k, v = (np.broadcast_to(x, (*q.shape[:2], *x.shape[2:])) for x in (k, v) if sizes_fit(k, k, v))
        return core(q, k, v, False, default(q, scale))

    monkeypatch.chdir(tmp_path)
    laws = [law for law in law_book() if law.family in ("attention", "heads")]
    groups = causes(checked(cell_of(equal_heads_or_one, requires=("Q >= 1",)), laws, examples=20))
    assert [cause.condition for cause in groups] == ["G != H and G != 1"]
    assert 'declare requires=("G == H or G == 1",), or mend it' in groups[0].text()


def test_what_raises_is_not_said_to_look_like_what_is_wrong_elsewhere(monkeypatch, tmp_path):
    def two_mistakes(q, k, v, *, causal=False, scale=None):
        if q.shape[2] == 5:
            raise RuntimeError("no five queries")
        return core(q, k, v, causal, 1.0)

    monkeypatch.chdir(tmp_path)
    laws = [law for law in law_book() if law.family in ("attention", "masking")]
    for verdict in checked(cell_of(two_mistakes), laws, examples=60):
        example = verdict.counterexample
        assert example is None or not (example.exception and example.diagnosis)


def test_all_dtypes_share_a_cause_and_it_is_raised_once(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    verification = verify(without_scale, profile="glance", dtypes=["float32", "float64"])
    with pytest.raises(AssertionError) as raised:
        verification.raise_for_failures()
    text = str(raised.value)
    assert text.count("looks like") == 1
    assert "(float64, float32)" in text
    assert text.splitlines()[-1].startswith("1 cause, ")


def test_what_a_bound_without_end_hides_is_judged_with_other_numbers():
    run = prepare(cell_of(lambda q, k, v: core(q, k, v, False, 1.0) * 0))
    loud = np.full((1, 1, 2, 1), 1e8, np.float32)
    run.problems = [Problem(query=loud, key=loud[:, :, :1], value=np.ones((1, 1, 1, 1), np.float32))]
    assert np.isposinf(run.bound(run.problems[0])[0].errors).all()
    assert [call.wrong for call in judged(run)] == [(), ("output",)]
