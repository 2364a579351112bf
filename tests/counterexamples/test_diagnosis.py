"""A diagnosis names the planted bug, says nothing where it does not know, and never costs the failure its message.

The mutants are a sample over the families; that their sentences are right was read against their docstrings.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest

from qkverify.contract import describe, registry
from qkverify.counterexamples import diagnosis
from qkverify.counterexamples.diagnosis import diagnose, looks_like
from qkverify.errors import LawViolation, UnsupportedCase
from qkverify.problem.attention_problem import Problem
from qkverify.runs.run import Run
from qkverify.verification.checking import Cell, applicable, check, checked, law_book, prepare
from qkverify.verification.laws import explain
from qkverify.verification.mutation_testing import planted

from ..verification.sentences import contradicting, failures_of

SENTENCES = {
    "B007": "The result equals attention with causal aligned top-left; bottom-right is declared.",
    "B009": "With several queries the result equals attention with causal aligned top-left; bottom-right is declared; "
    "otherwise it is right.",
    "B015": "The result equals causal attention that hides whole tiles of 16 keys only: a query sees all of its own tile.",
    "B001": "Without causality the result equals attention without a scale; otherwise it is right.",
    "B004": "The result equals attention whose bias is scaled too, added before the scale.",
    "B078": "The result equals attention with the mask inverted: True hides.",
    "B084": "With one batch entry the result equals attention without the mask; otherwise it is right.",
    "B100": "The result equals attention without the key lengths: padding is read.",
    "B090": "Where nothing else hides keys the result equals attention without the window; otherwise it is right.",
    "B054": "The result equals attention with the key heads tiled instead of repeated (h % G instead of h // group).",
    "B097": "The result equals attention whose heads take the slope of the head before them, the first one 1.",
    "B019": "The result equals attention that gives NaN to queries that see no key; zero is declared.",
    "B027": "Only the rows of queries that see no key are wrong.",
    "B040-total": "The result equals attention over tiles of 16 keys whose sum of weights is not rescaled when the "
    "maximum rises.",
    "B041": "The result is wrong only where the number of keys is no multiple of 16.",
    "B124": "The log-sum-exp equals the logarithm to base 2; the natural one is declared.",
    "A038": "The gradients are those of a scale without its sign.",
    "B131-delta-is-missing": "The gradients are those without delta, the row's sum of weight times gradient.",
    "B068": "The result is right where every array is contiguous and wrong with the query as ",
    "B142": "The call writes into its argument query.",
    "B036": "Without options the result is as far off as sums would be that are kept in float32.",
    "B109": "With one position the result equals the rotation of the first batch entry, for all; otherwise it is right.",
    "B062": "The result equals multi-head attention that takes batch entries and heads for each other before it merges them.",
    "A011": "In the layout of halves the result equals an encoding whose cosines come before the sines; otherwise it is right.",
    "A012": "The result is right where every array is contiguous and wrong with arrays as 'heads after length': strides are ",
    "B116": "The result equals a rotation whose query has the second members of the pairs from the key, and whose key the first ",
    "A019": "The result equals a rotation by the positions of the first batch entry, for all.",
    "A005": "The result equals slopes of which all heads after the first 64 share that of head 64.",
    "B119": "The result equals an embedding that counts positions from the start of the row, padding included.",
    "A021": "The result equals an embedding whose positions are scaled by sqrt(d), as the words are.",
    "L002": "The result equals a feed-forward network whose relu comes before the bias.",
    "L006": "The result equals an encoder layer whose norms add eps to the deviation, outside of the root.",
    "L011": "The result equals an encoder layer whose later residual paths all start at the layer's input.",
    "L015": "The result equals an encoder layer that attends to the padding only.",
    "L018": "The result equals a decoder layer whose attention to the memory is causal, as that to the targets is.",
    "L022": "The result equals the loss with smoothing that is spread over the C - 1 other classes instead of all C.",
    "B046": "The gradients of query are right for the first sequence of a pack, and not always for later ones.",
    "B102": "The result equals packed attention that takes the last sequence for as long as the others, where these are of one ",
    "P003": "The result equals packed attention whose sequences see the first key of the next one, too.",
    "B106": "With one new token and room for another the result equals attention whose new tokens are written one slot too far, ",
    "B107-entries": "The result equals attention that reads and writes every entry of the cache at the length of the first.",
    "P001": "The result equals attention that reads the last page of an entry whole, past the entry's length.",
    "P002": "The result equals attention that reads the pages in the order of the pool instead of the table.",
    "B135-kept": "The result equals attention whose weights are divided by p instead of 1 - p where they are kept.",
    "B135-gradient": "The gradients are those where a weight's gradient is multiplied by p instead of divided by 1 - p.",
    "B136-every": "All calls drop the same weights.",
    "B136-heads": "All heads drop the same weights.",
    "B137-dropout": "Weights are dropped although no dropout was asked for: about ",
    "A013": "A dropout of zero drops weights all the same: about ",
    "A014": "The result equals attention whose weights are kept with the probability p with which they should be dropped.",
}
QUICK = ("agrees_with_reference", "vjp_agrees_with_reference", "log_sum_exp_is_right")  # these break first
SILENT = ("B039",)  # a rounding that only an exact law sees


def broken(implementation, examples=100):
    """The run on which the first law is broken, with what it raised and the law."""
    dtype = next(d for d in ("float32", "float64", "bfloat16") if d in implementation.dtypes)
    cell = Cell(implementation, "cpu", dtype, implementation.name)
    first = (*QUICK, *(law.name for law in law_book() if "dropout" in law.name))  # the latter apply to few
    for law in sorted(applicable(law_book(), cell), key=lambda law: law.name not in first):
        run = prepare(cell)
        if law.unfit(run):
            continue
        try:
            law.check(run, max_examples=examples, seed=1, database=None)
        except UnsupportedCase:
            continue
        except Exception as error:
            return run, error, law
    raise AssertionError(f"{implementation.name} breaks no law")


def mutant(word):
    return next(implementation for implementation in planted() if word in implementation.name)


def problem(B=2, H=2, Q=3, K=5, D=4, **options):
    rng = np.random.default_rng(0)
    shapes = {"query": (B, H, Q, D), "key": (B, H, K, D), "value": (B, H, K, D)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return Problem(**arrays, **options)


def run_of(function):
    return Run(describe(function, empty_rows="zero", causal_alignment="bottom-right"))


def textbook(query, key, value, *, mask=None, causal=False, scale=None, bias=None):
    return registry.find("numpy_textbook")[0].function(
        query, key, value, mask=mask, causal=causal, scale=scale, bias=bias
    )


@pytest.mark.parametrize("word", SENTENCES)
def test_a_planted_bug_gets_its_sentence(word):
    run, _, law = broken(mutant(word))
    assert looks_like(run, dropped=law.family == "dropout").startswith(SENTENCES[word])


@pytest.mark.parametrize(
    "word", ["B007", "B009", "B001", "B041-last", "B027", "B124", "A038", "A012", "B109", "P001", "L011"]
)
def test_a_sentence_is_true_of_problems_that_the_diagnosis_has_not_seen(word):
    run, failures = failures_of(mutant(word), failed=1)
    (claim,) = {id(f.claim): f.claim for f in failures.of.values()}.values()
    against, tried = contradicting(run, claim)
    assert tried > 30
    assert not against


@pytest.mark.parametrize("word", SILENT)
def test_what_no_known_mistake_explains_gets_no_sentence(word):
    run, _, _ = broken(mutant(word))
    assert looks_like(run) == ""


@pytest.mark.parametrize("name", ["numpy_textbook", "numpy_tiled"])
@pytest.mark.parametrize(
    "options", [{}, {"causal": True}, {"mask": np.tri(3, 5, dtype=bool)}, {"window": (1, 0)}]
)
def test_right_results_get_no_sentence(name, options):
    implementation = registry.find(name)[0]
    assert diagnose(Run(implementation), problem(**options)) == ""


def one_percent_more(query, key, value, *, mask=None, causal=False, scale=None, bias=None):
    return textbook(query, key, value, mask=mask, causal=causal, scale=scale, bias=bias) * np.float32(1.01)


def last_head_doubled(query, key, value, *, mask=None, causal=False, scale=None, bias=None):
    output = textbook(query, key, value, mask=mask, causal=causal, scale=scale, bias=bias)
    output[:, -1] *= 2
    return output


def wrong_for_long_sequences(query, key, value, *, mask=None, causal=False, scale=None, bias=None):
    output = textbook(query, key, value, mask=mask, causal=causal, scale=scale, bias=bias)
    return output * np.float32(1.5 if key.shape[2] > 40 else 1)


def wrong_where_two_options_meet(query, key, value, *, mask=None, causal=False, scale=None, bias=None):
    output = textbook(query, key, value, mask=mask, causal=causal, scale=scale, bias=bias)
    return -output if causal and mask is not None else output


@pytest.mark.parametrize(
    "function", [one_percent_more, last_head_doubled, wrong_for_long_sequences, wrong_where_two_options_meet]
)
def test_a_bug_of_no_known_kind_gets_no_sentence(function):
    run, _, _ = broken(describe(function, empty_rows="zero", causal_alignment="bottom-right"), examples=25)
    assert looks_like(run) == ""


def sentences_of(function, examples=25, requires=("G == H",), **declared):
    """What is said of every law of attention and masking that a function breaks, settled."""
    implementation = describe(function, arrays="numpy", dtypes=("float32",), empty_rows="zero", causal_alignment="bottom-right",
                   requires=requires, **declared)  # fmt: skip
    laws = [law for law in law_book() if law.family in ("attention", "masking")]
    verdicts = checked(Cell(implementation, "cpu", "float32"), laws, examples=examples)
    return {v.counterexample.diagnosis for v in verdicts if v.outcome == "failed"} - {""}


def test_otherwise_right_is_not_said_where_another_problem_is_wrong():
    """Wrong without causality as if there were no scale, and with causality in another way."""

    def attention(query, key, value, *, causal=False, scale=None):
        output = textbook(query, key, value, causal=causal, scale=scale if causal else 1.0)
        return output * np.float32(1.5 if causal and query.shape[2] > 3 else 1)

    assert not any("otherwise" in said for said in sentences_of(attention, examples=60))


def test_multiples_of_a_tile_are_not_called_right_where_larger_ones_are_wrong():
    def attention(query, key, value, *, causal=False, scale=None):
        output = textbook(query, key, value, causal=causal, scale=scale)
        keys = key.shape[2]
        return output * np.float32(1.5 if keys % 16 or (causal and keys >= 64) else 1)

    assert not any("multiple" in said for said in sentences_of(attention))


def test_zeros_that_are_not_chance_are_not_called_dropout():
    """A layout error leaves most of the output zero."""

    def attention(query, key, value, *, causal=False, scale=None, dropout=0.0):
        output = textbook(query, key, value, causal=causal, scale=scale)
        output[..., 1:] = 0
        return output

    assert not any("drop" in said for said in sentences_of(attention))


def test_an_exception_gets_no_sentence_about_dropout():
    def attention(query, key, value, *, causal=False, scale=None, dropout=0.0):
        if query.shape[2] == 2:
            raise RuntimeError("not two queries")
        return textbook(query, key, value, causal=causal, scale=scale)  # and nothing is dropped

    assert sentences_of(attention) == set()


def test_a_convention_that_was_only_detected_is_not_called_declared():
    def attention(query, key, value, *, causal=False, scale=None):
        return textbook(query, key, value, causal=causal, scale=scale)

    implementation = describe(attention, arrays="numpy", dtypes=("float32",), requires=("G == H",))
    run = Run(implementation, semantics={"causal_alignment": "top-left", "empty_rows": "zero"})
    said = diagnose(run, problem(causal=True, causal_alignment="top-left"))
    assert said == "The result equals attention with causal aligned bottom-right; top-left was detected."


def test_a_tiny_problem_on_which_many_mistakes_coincide_is_told_apart_by_others():
    def uncapped(query, key, value, *, mask=None, causal=False, scale=None):
        return textbook(query, key, value, mask=mask, causal=causal, scale=1.0 if scale is None else scale)

    one = np.ones((1, 1, 1, 4), np.float32)
    tiny = Problem(query=one, key=np.concatenate([one, 0 * one], 2), value=np.concatenate([one, 0 * one], 2))
    expected = "The result equals attention without a scale (1 instead of 1 / sqrt(D))."
    assert diagnose(run_of(uncapped), tiny) == expected


def test_a_scale_that_is_written_in_the_code_is_named():
    def attention(query, key, value, *, mask=None, causal=False, scale=None):
        return textbook(query, key, value, mask=mask, causal=causal, scale=0.125 if scale is None else scale)

    expected = "The result equals attention whose scale is 1 / sqrt(64) for every head size."
    assert diagnose(run_of(attention), problem(D=16)) == expected


@pytest.mark.parametrize("factor", [1.02, 1.1, 1.4])
def test_a_scale_that_is_a_little_off_is_not_called_rounding(factor):
    """Bounds of sums in bfloat16 hold such errors on small scores. But large ones are near the bounds, and small ones lean."""

    def attention(query, key, value, *, mask=None, causal=False, scale=None):
        scale = factor * query.shape[-1] ** -0.5 if scale is None else scale
        return textbook(query, key, value, mask=mask, causal=causal, scale=scale)

    assert diagnose(run_of(attention), problem()) == ""


def test_an_infinite_cap_that_gives_nan_is_refused_and_no_mistake():
    def attention(query, key, value, *, causal=False, bias=None, softcap=None):
        s = query @ np.swapaxes(key, -1, -2) * query.dtype.type(query.shape[-1] ** -0.5)
        with np.errstate(invalid="ignore"):
            s = s if softcap is None else query.dtype.type(softcap) * np.tanh(s / query.dtype.type(softcap))
        s = s if bias is None else s + bias
        s = np.where(np.tri(*s.shape[2:], s.shape[3] - s.shape[2], dtype=bool), s, -np.inf) if causal else s
        with np.errstate(invalid="ignore"):
            weights = np.exp(s - s.max(-1, keepdims=True))
        return weights / weights.sum(-1, keepdims=True) @ value

    implementation = describe(
        attention, name="literal", arrays="numpy", dtypes=("float32",), requires=("G == H", "K >= Q")
    )
    run = prepare(Cell(implementation, "cpu", "float32"))
    law = next(law for law in law_book() if law.name == "infinite_cap_is_none")
    verdict = check(law, run, max_examples=20, seed=1, database=None)
    assert verdict.outcome == "not offered"
    assert "with an infinite softcap every number is NaN" in verdict.reason


def test_an_implementation_that_raises_when_it_is_asked_again_is_harmless():
    calls = []

    def fragile(query, key, value, *, causal=False):
        calls.append(1)
        raise RuntimeError("only once")

    run = run_of(fragile)
    assert diagnose(run, problem()) == ""
    run.problems = [problem()]
    assert looks_like(run) == ""
    assert calls


def test_an_error_of_the_diagnosis_itself_does_not_cost_the_message(monkeypatch):
    def fails(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(diagnosis, "_of_attention", fails)
    run, error, law = broken(mutant("B078"))
    message = explain(error, law, run)
    assert law.sentence in message
    assert "looks like" not in message


def test_a_failure_says_what_it_looks_like():
    run, error, law = broken(mutant("B007"))
    assert isinstance(error, LawViolation)
    lines = explain(error, law, run, replay="").splitlines()
    assert lines[1] == f"  looks like         {SENTENCES['B007']}"


def test_a_diagnosis_leaves_the_run_as_it_was():
    run, _, _ = broken(mutant("B078"))
    before = copy.copy(vars(run))
    problems, cached = list(run.problems), set(run._cache)
    looks_like(run)
    assert vars(run) == before
    assert run.problems == problems
    assert set(run._cache) == cached


def test_a_diagnosis_leaves_the_arrays_as_they_were():
    def greedy(query, key, value):
        output = textbook(query, key, value)
        query *= 2
        return output

    given = problem()
    kept = given.query.copy()
    assert diagnose(run_of(greedy), given) == "The call writes into its argument query."
    np.testing.assert_array_equal(given.query, kept)


def test_the_texts_of_the_mistakes_are_sentences_that_can_be_filled_in():
    words = {"declared": "bottom-right", "other": "top-left", "empty": "zero"}
    texts = [mistake.text.format(**words) for mistake in diagnosis.MISTAKES]
    assert all(text and "{" not in text and not text.endswith(".") for text in texts)
