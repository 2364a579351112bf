"""Each mistake of another operation than attention, made on purpose, is named, or nothing is: never another one.

What is tested are the tables themselves: a function that returns what a mistake predicts, in the dtype under test, is diagnosed
with the whole table. Where two mistakes give the same on everything that is tried, silence is right.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qkverify.contract import REGISTERED, describe, registry, with_defaults
from qkverify.counterexamples.diagnosis import looks_like, trial_of
from qkverify.counterexamples.diagnosis.claims import Observation
from qkverify.counterexamples.diagnosis.deadline import Deadline
from qkverify.counterexamples.diagnosis.dropout import dropout
from qkverify.counterexamples.diagnosis.operations import OTHERS, claim_about
from qkverify.counterexamples.diagnosis.operations.calling import Caller
from qkverify.problem.attention_problem import Problem
from qkverify.runs.run import Run
from qkverify.verification.mutation_testing import planted

PLENTY = 60.0  # seconds: a table must not be cut short on a busy machine
# Variants that can never be told from right code, or from another one, in these operations.
EQUAL = (
    "attention whose query is multiplied by the scale in its own dtype, and rounded there",  # rounds as the query is rounded
    "attention with the softcap applied after bias and ALiBi",  # which there are none of
    "attention whose keys and values are repeated for the group along the sequence, not along the heads",
)
ALSO = {
    "packed_attention": (*EQUAL, "attention with the keys and values of the first batch entry for all",
                         "attention of the first batch entry, for all"),  # a pack has one
    "cached_attention": EQUAL,
    "paged_attention": (*EQUAL, "attention whose softmax does not subtract the maximum: large scores overflow"),
}  # fmt: skip


def of(operation):
    """A right implementation of an operation, in NumPy: one that gives gradients, if there is one."""
    planted("controls")
    registry.find("numpy_textbook")
    named = (
        implementation
        for implementation in REGISTERED
        if implementation.arrays == "numpy" and not implementation.name.startswith("mutant")
    )
    right = [
        with_defaults(implementation) for implementation in named if implementation.operation == operation
    ]
    return next(
        (implementation for implementation in right if "gradients" in implementation.offers), right[0]
    )


def other_operation(run, until):
    """The diagnosis of another operation, with time enough for all that it is tested on."""
    trial = trial_of(run)
    trial.seconds = PLENTY
    claim = claim_about(run, until, trial)
    return claim.sentence if claim else ""


def sentence_of(run, monkeypatch, aspect="result", compute=None):
    """The diagnosis of a function that returns what `compute` predicts; without it, of the run's own function."""

    def called(self, example, of_aspect, lent):
        operation = self.operation
        right = operation.exact if of_aspect == "result" else operation.gradients.exact
        predict = self.computing(compute if of_aspect == aspect else right, of_aspect)
        parts = predict(Observation(replace(example, judged=None), {}, {}, True))
        return {name: np.asarray(getattr(x, "value", x)).astype(run.numpy_dtype) for name, x in parts.items()}

    with monkeypatch.context() as patched:
        if compute is not None:
            patched.setattr(Caller, "_called", called)
        return other_operation(run, Deadline(PLENTY))


def tables():
    for name, operation in OTHERS.items():
        yield name, "result", operation.mistakes
        if operation.gradients is not None:
            yield name, "gradients", operation.gradients.mistakes


@pytest.mark.parametrize(
    ("name", "aspect", "table"), [pytest.param(*row, id=f"{row[0]}-{row[1]}") for row in tables()]
)
def test_a_mistake_made_on_purpose_is_named(name, aspect, table, monkeypatch):
    run, silent = Run(of(name), dtype="float32"), []
    if name == "decoder_layer":  # most of them it shares with the encoder
        table = [row for i, row in enumerate(table) if i % 4 == 0 or i >= len(table) - 16]
    for text, compute in table:
        said = sentence_of(run, monkeypatch, aspect, compute)
        assert not said or (text in said and "otherwise" not in said), (text, said)
        silent += [] if said else [text]
    expected = ALSO.get(name, ()) if aspect == "result" else ()
    assert sorted(silent) == sorted({text for text, _ in table} & set(expected))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["encoder_layer", "cross_entropy", "packed_attention"])
def test_where_bounds_are_wide_a_mistake_is_never_taken_for_another(name, dtype, monkeypatch):
    run = Run(of(name), dtype=dtype)
    for text, compute in OTHERS[name].mistakes[::3]:
        said = sentence_of(run, monkeypatch, compute=compute)
        assert not said or text in said, (text, said)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_right_code_gets_no_sentence(name, dtype, monkeypatch):
    assert sentence_of(Run(of(name), dtype=dtype), monkeypatch) == ""


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("torch_encoder_fast", "float32"),
        ("torch_decoder", "float32"),
        ("torch_cross_entropy", "float64"),
        ("torch_packed", "bfloat16"),
        ("torch_cached", "float16"),
        ("torch_paged", "bfloat16"),
    ],
)
def test_torch_gets_no_sentence(name, dtype):
    """One that skips padding, ones that keep padding out by a mask, and ones that round."""
    run = Run(registry.find(name)[0], dtype=dtype)
    assert other_operation(run, Deadline(PLENTY)) == ""


def one_percent_more(x, w_1, b_1, w_2, b_2):
    return of("feed_forward").function(x, w_1, b_1, w_2, b_2) * np.float32(1.01)


def right_for_short_sequences(query, key_pages, value_pages, page_table, lengths):
    output = of("paged_attention").function(query, key_pages, value_pages, page_table, lengths)
    return output * np.float32(1 + (lengths.max() > 6))


def greedy(x, w_1, b_1, w_2, b_2):
    result = of("feed_forward").function(x, w_1, b_1, w_2, b_2)
    x *= 2
    return result


def moody(scores, _calls=[]):  # noqa: B006  (it remembers)
    _calls.append(1)
    return of("softmax").function(scores) * np.float32(1 + (len(_calls) % 3 == 0))


def raising(tokens, table):
    raise RuntimeError("never")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (one_percent_more, ""),
        (right_for_short_sequences, ""),
        (raising, ""),
        (greedy, "The call writes into its argument x."),
        (moody, "The same call gives different results from one time to the next, right and wrong ones."),
    ],
)
def test_a_bug_that_is_no_variant(function, said):
    implementation = describe(function, arrays="numpy", operation="softmax" if function is moody else None)
    assert looks_like(Run(implementation)) == said


def test_what_stands_in_the_padding_is_not_judged():
    """A layer may give zeros for padding."""

    def zeros_there(x, weights, *, heads, norm_first=False, eps=1e-5, key_lengths=None):
        output = of("encoder_layer").function(
            x, weights, heads=heads, norm_first=norm_first, eps=eps, key_lengths=key_lengths
        )
        kept = np.arange(x.shape[1]) < (x.shape[1] if key_lengths is None else key_lengths[:, None])
        return np.where(np.broadcast_to(kept, x.shape[:2])[..., None], output, 0)

    assert looks_like(Run(describe(zeros_there, arrays="numpy", operation="encoder_layer"))) == ""


def test_right_dropout_gets_no_sentence():
    run = Run(registry.find("torch_sdpa-math")[0])
    with np.errstate(all="ignore"):
        assert dropout(run, Deadline(PLENTY)) == ""


def test_an_implementation_that_refuses_what_shows_dropout_keeps_its_other_diagnosis():
    """Sizes of 33 are made to see what was dropped; this one takes none above 16."""
    torch = pytest.importorskip("torch")

    def small(query, key, value, *, scale=None, dropout=0.0):
        assert query.shape[-1] <= 16
        return torch.softmax(query @ key.mT, dim=-1) @ value

    implementation = describe(
        small, arrays="torch", empty_rows="zero", causal_alignment="bottom-right", requires=("G == H",)
    )
    run, rng = Run(implementation), np.random.default_rng(0)
    arrays = [rng.standard_normal((1, 1, n, 4)).astype(np.float32) for n in (2, 3, 3)]
    run.problems = [Problem(query=arrays[0], key=arrays[1], value=arrays[2])]
    assert looks_like(run) == "The result equals attention without a scale."


def test_the_texts_are_told_apart():
    for name, aspect, table in tables():
        computes = {}
        for text, compute in table:
            assert text, (name, aspect)
            assert "{" not in text, text
            assert not text.endswith("."), text
            computes.setdefault(text, []).append(compute)
        assert sum(len(x) > 1 for x in computes.values()) <= 1, name  # one mistake with two outcomes
