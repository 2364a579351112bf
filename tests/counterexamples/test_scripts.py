"""A counterexample's script: it needs no qkverify, fails the same way in a process of its own, and passes on right code."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qkverify import probes
from qkverify.contract import registry
from qkverify.counterexamples import scripts, store
from qkverify.errors import LawViolation
from qkverify.implementations import (
    numpy_decode,
    numpy_layers,
    numpy_merged,
    numpy_norms,
    numpy_textbook,
    torch_decode,
    torch_eager,
    torch_layers,
    torch_merged,
    torch_multi_head,
    torch_norms,
    torch_positions,
)
from qkverify.results import Counterexample
from qkverify.verification.checking import Cell, applicable, check, law_book, prepare
from qkverify.verification.mutation_testing import cell_of, planted

TORCH = """
import torch

def attention(query, key, value, attn_mask=None, is_causal=False, scale=None, enable_gqa=False):
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    scores = query @ key.mT * ({usual} if scale is None else scale)
    if is_causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill({hidden}, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return torch.softmax(scores, dim=-1).nan_to_num() @ value
"""
RIGHT = {"usual": "query.shape[-1] ** -0.5", "hidden": "~attn_mask"}
NUMPY = """
import numpy as np

def weights(query, key):
    scores = query @ np.swapaxes(key, -1, -2) * query.dtype.type(query.shape[-1] ** -0.5)
    exponentials = np.exp(scores - scores.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)

def attention(query, key, value):
    {body}

def attention_vjp(query, key, value, upstream):
    p, d_p = weights(query, key), upstream @ np.swapaxes(value, -1, -2)
    d_s = p * (d_p - {delta}) * query.dtype.type(query.shape[-1] ** -0.5)
    return d_s @ key, np.swapaxes(d_s, -1, -2) @ query, np.swapaxes(p, -1, -2) @ upstream
"""
GOOD = {"body": "return weights(query, key) @ value", "delta": "(p * d_p).sum(-1, keepdims=True)"}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(cell: Cell, *laws: str) -> Counterexample:
    """The counterexample of the first of these laws (or of all) that is broken."""
    book = applicable(law_book(), cell)
    for law in [law for law in book if law.name in laws] or book:
        verdict = check(law, prepare(cell), max_examples=100, seed=1, database=None)
        if verdict.counterexample is not None:
            return verdict.counterexample
    raise AssertionError(f"{cell} breaks none of {laws or 'the laws'}")


def of_mutant(word: str, *laws: str) -> Counterexample:
    return found(
        cell_of(next(implementation for implementation in planted() if word in implementation.name)), *laws
    )


def of_file(name: str, text: str, dtype: str, *laws: str, **declared: Any) -> Counterexample:
    """Of the function in a file, as it is inferred or declared."""
    Path(name).write_text(text)
    implementation = registry.find(f"{Path(name).resolve()}:attention")[0]
    implementation = (
        dataclasses.replace(implementation, declared=True, **declared)
        if declared
        else probes.fitted(implementation)
    )
    return found(Cell(implementation, "cpu", dtype), *laws)


def text_of(counterexample: Counterexample) -> str:
    path = store.script_of(counterexample.replay)
    assert path is not None, counterexample.message
    assert f"script without qkverify: {path}" in counterexample.message
    text = path.read_text()
    assert text == counterexample.script
    assert not re.search(r"^\s*(import|from)\s+qkverify", text, re.M)
    return text


def executed(text: str, home: Path, **constants: str) -> subprocess.CompletedProcess[str]:
    """The script in a process of its own and a working folder elsewhere, with some of its constants changed."""
    for name, value in constants.items():
        text, count = re.subn(rf"^{name} = .*$", f"{name} = {value!r}", text, flags=re.M)
        assert count == 1, name
    elsewhere = home / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    script = elsewhere / "pasted.py"
    script.write_text(text)
    path = {"OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"]}
    return subprocess.run(
        [sys.executable, str(script)], cwd=elsewhere, env=path, capture_output=True, text=True, timeout=60
    )


def assert_fails_as(counterexample: Counterexample, done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 1, done.stdout + done.stderr
    assert "AssertionError" in done.stderr.splitlines()[-1]
    assert f"got {counterexample.got} " in done.stdout
    exact = re.search(r"exact (\S+) ", done.stdout)
    assert exact is not None, done.stdout
    if (
        exact[1] != counterexample.exact
    ):  # a law that compares two calls has the second one's rounded number there
        apart = abs(float(exact[1]) - float(counterexample.exact))
        assert apart <= float(counterexample.bound) / 8, done.stdout


@pytest.mark.parametrize(
    ("word", "law"),
    [
        ("B007", "agrees_with_reference"),
        ("B078", "masked_keys_have_no_influence"),  # NaN in what nobody may read: two calls
        ("B054", "agrees_with_reference"),
        ("B124", "log_sum_exp_is_right"),
        ("B066-query", "agrees_with_reference"),  # a memory layout
        ("B022", "vjp_agrees_with_reference"),  # torch, gradient
        ("B131-delta-is-missing", "vjp_agrees_with_reference"),  # NumPy, gradient: the vjp of the mutant
        ("B037", "agrees_with_reference"),  # torch, bfloat16
        ("B029-softmax", "softmax_agrees_with_formula"),
        ("B060", "multi_head_agrees_with_reference"),
        ("B116", "rotary_pair_agrees_with_formula"),  # one of two results
        ("B119", "embedding_left_padding"),
        ("L002", "feed_forward_agrees_with_reference"),
        ("A012", "rotary_layout_invariance"),  # a memory layout of another operation
        ("B046", "packed_gradients_equal_alone"),
        ("L021", "label_smoothing_gradient_is_softmax_minus_target"),
    ],
)
def test_a_script_fails_with_the_numbers_of_its_counterexample(word, law, folder):
    counterexample = of_mutant(word, law)
    assert_fails_as(counterexample, executed(text_of(counterexample), folder))


@pytest.mark.parametrize(
    ("word", "law", "right"),
    [
        ("B007", "agrees_with_reference", numpy_textbook),
        ("B066-query", "agrees_with_reference", numpy_textbook),
        ("B022", "vjp_agrees_with_reference", torch_eager),
        ("B124", "log_sum_exp_is_right", numpy_textbook),
    ],
)
def test_the_same_script_passes_on_right_code(word, law, right, folder):
    text = text_of(of_mutant(word, law))
    text = re.sub(r'loaded\["\w+"\]', 'loaded["attention"]', text)
    done = executed(text, folder, FILE=right.__file__)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("word", "law", "right"),
    [
        ("B102", "packed_equals_alone", numpy_decode.packed_attention),
        ("B107-prompt", "chunked_prefill_equals_full", numpy_decode.cached_attention),
        ("P002", "paged_equals_contiguous", numpy_decode.paged_attention),
        ("D045", "packed_equals_alone", numpy_decode.packed_attention),  # a window
        ("D049", "packed_equals_alone", numpy_decode.packed_attention),  # ALiBi
        ("D051", "paged_equals_contiguous", numpy_decode.paged_attention),  # sinks
        ("L014", "encoder_padding_is_never_seen", numpy_layers.encoder_layer),
        ("L006", "encoder_agrees_with_reference", numpy_layers.encoder_layer),
        ("L016", "decoder_agrees_with_reference", numpy_layers.decoder_layer),
        ("L020", "cross_entropy_agrees_with_reference", numpy_layers.cross_entropy),
        ("L068", "rms_norm_agrees_with_reference", numpy_norms.rms_norm),
        ("D063", "merged_agrees_with_reference", numpy_merged.merged_attention),  # the second of two results
    ],
)
def test_other_operations_have_scripts_that_pass_on_right_code(word, law, right, folder):
    counterexample = of_mutant(word, law)
    text = text_of(counterexample)
    assert_fails_as(counterexample, executed(text, folder))
    text = re.sub(r'loaded\["\w+"\]', f'loaded["{right.__name__}"]', text)
    done = executed(text, folder, FILE=inspect.getsourcefile(right))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("word", "law", "right"),
    [
        ("L049", "encoder_gradients_agree_with_reference", torch_layers.encoder_layer),  # one of the weights
        ("L050", "decoder_gradients_agree_with_reference", torch_layers.decoder_layer),
        ("L046", "feed_forward_gradients_agree_with_reference", torch_layers.feed_forward),
        ("L048", "multi_head_gradients_agree_with_reference", torch_multi_head.multi_head_attention),
        ("L043", "rotary_gradient_turns_back", torch_positions.rotary),
        ("L045", "embedding_gradient_sums_over_places", torch_positions.embedding),
        ("L057", "rotary_pair_gradients_turn_back", torch_positions.rotary_pair),  # two upstream gradients
        ("L072", "norm_gradients_agree_with_reference", torch_norms.layer_norm_in_steps),
        (
            "D065",
            "merged_gradients_agree_with_reference",
            torch_merged.merged_attention,
        ),  # of two results, which both count
        ("B046", "packed_gradients_equal_alone", numpy_decode.packed_attention),  # a vjp of its own
        ("D052", "cached_gradients_equal_alone", torch_decode.cached_attention),  # caches that are written
        ("D054", "unread_cache_gets_zero_gradient", numpy_decode.cached_attention),
        ("D055", "paged_gradients_equal_alone", numpy_decode.paged_attention),
    ],
)
def test_gradients_have_scripts_that_pass_on_right_code(word, law, right, folder):
    """The exact derivative needs no backward pass."""
    counterexample = of_mutant(word, law)
    text = text_of(counterexample)
    assert "+= 1e-30j" in text
    assert_fails_as(counterexample, executed(text, folder))
    text = re.sub(r'loaded\["\w+"\]', f'loaded["{right.__name__}"]', text)
    if "_vjp = loaded" in text:
        text = re.sub(
            r'^(\w+_vjp) = loaded\["\w+"\]$', rf'\1 = loaded["{right.__name__}_vjp"]', text, flags=re.M
        )
    done = executed(text, folder, FILE=inspect.getsourcefile(right))
    assert done.returncode == 0, done.stdout + done.stderr


FEED = """
import jax

@jax.custom_vjp
def relu(x):
    return jax.numpy.maximum(x, 0)

relu.defvjp(lambda x: (relu(x), x), lambda x, upstream: (jax.numpy.where(x > 0, upstream, {below}),))

def feed_forward(x, w_1, b_1, w_2, b_2):
    return relu(x @ w_1 + b_1) @ w_2 + b_2
"""


def test_a_gradient_in_jax_has_a_script(folder):
    pytest.importorskip("jax", reason="needs jax")
    Path("feed.py").write_text(FEED.format(below="upstream * 0.01"))
    implementation = registry.find(f"{Path('feed.py').resolve()}:feed_forward")[0]
    counterexample = found(
        Cell(implementation, "cpu", "float32"), "feed_forward_gradients_agree_with_reference"
    )
    text = text_of(counterexample)
    assert "jax.vjp(" in text
    assert_fails_as(counterexample, executed(text, folder))
    Path("feed.py").write_text(FEED.format(below="0.0"))
    done = executed(text, folder)
    assert done.returncode == 0, done.stdout + done.stderr


DROPOUT = """
import torch

def attention(query, key, value, *, scale=None, dropout=0.0):
    query, key, value = query.clone(), *(x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    return torch.dropout(torch.softmax(scores, dim=-1), dropout, dropout > 0) @ value
"""


@pytest.mark.parametrize(
    ("word", "law"),
    [
        ("B135-gradient", "dropout_gradients_use_the_same_mask"),
        ("B135-kept", "dropout_drops_or_scales"),
        ("B136-heads", "dropout_masks_differ"),
        ("B137-dropout", "dropout_is_off_unless_asked_for"),
        ("B137-dropped", "dropout_drops_or_scales"),
        ("A013", "dropout_of_zero_is_none"),
        ("A014", "dropout_drops_its_share"),
    ],
)
def test_a_failure_that_depends_on_chance_has_a_script_that_fails_every_time(word, law, folder):
    text = text_of(of_mutant(word, law))
    assert "torch.manual_seed(" in text
    done = [executed(text, folder) for _ in range(2)]
    assert all(process.returncode == 1 for process in done), done
    assert "AssertionError" in done[0].stderr.splitlines()[-1]
    assert done[0].stdout == done[1].stdout
    (folder / "right.py").write_text(DROPOUT)
    text = re.sub(r'loaded\["\w+"\]', 'loaded["attention"]', text)
    right = executed(text, folder, FILE=str(folder / "right.py"))
    assert right.returncode == 0, right.stdout + right.stderr


def test_writing_a_script_about_dropout_leaves_the_generators_as_they_were(folder):
    import torch

    law = next(law for law in law_book() if law.name == "dropout_drops_its_share")
    run = prepare(
        cell_of(next(implementation for implementation in planted() if "A014" in implementation.name))
    )
    with pytest.raises(LawViolation):
        law.check(run, max_examples=50, seed=1, database=None)
    with scripts.dropout.generators_kept():
        torch.manual_seed(3)
        before = torch.get_rng_state()
        assert scripts.script(law, run)
        assert torch.equal(torch.get_rng_state(), before)


UNJUDGED = """
import numpy as np

def alibi_slopes(heads):
    return np.full(heads, 0.5)
"""


def test_a_result_that_its_law_compares_with_nothing_is_held_against_the_formula(folder):
    Path("slopes.py").write_text(UNJUDGED)
    implementation = registry.find(f"{Path('slopes.py').resolve()}:alibi_slopes")[0]
    counterexample = found(Cell(implementation, "cpu", "float64"), "alibi_slopes_are_distinct")
    assert not counterexample.exact
    assert executed(text_of(counterexample), folder).returncode == 1


CACHE = """
from qkverify.implementations.numpy_decode import Options, attend, held
import numpy as np

def cached_attention(query, key, value, key_cache, value_cache, lengths):
    output = np.zeros((*query.shape[:3], value.shape[3]), query.dtype)
    for b, length in enumerate(lengths):
        end = length + key.shape[2]
        key_cache[b, :, length:end], value_cache[b, :, length:end] = key[b], value[b]
        kept = held(key_cache[b, :, :end], value_cache[b, :, :end])
        output[b] = attend(query[b], kept, Options(causal=True))[0]
        {after}
    return output
"""


@pytest.mark.parametrize("after", ["value_cache[b, :, end:] = 0", "key_cache[b, :, length:end] *= 2"])
def test_a_cache_that_is_left_wrong_has_a_script(after, folder):
    Path("cache.py").write_text(CACHE.format(after=after))
    implementation = registry.find(f"{Path('cache.py').resolve()}:cached_attention")[0]
    counterexample = found(Cell(implementation, "cpu", "float32"), "cache_takes_exactly_the_new_tokens")
    text = text_of(counterexample)
    done = executed(text, folder)
    assert done.returncode == 1
    assert f"the call leaves other numbers in {after.partition('[')[0]}" in done.stderr
    Path("cache.py").write_text(CACHE.format(after="pass"))
    done = executed(text, folder)
    assert done.returncode == 0, done.stdout + done.stderr


LOSS = """
import torch

def cross_entropy(scores, targets, *, smoothing=0.0):
    return torch.nn.functional.cross_entropy({given}, targets, label_smoothing=smoothing, reduction="none")
"""


def test_a_gradient_of_another_operation_has_a_script(folder):
    """The loss is right and its graph is cut in two."""
    Path("loss.py").write_text(LOSS.format(given="scores + (scores - scores.detach())"))
    implementation = registry.find(f"{Path('loss.py').resolve()}:cross_entropy")[0]
    counterexample = found(
        Cell(implementation, "cpu", "float64"), "label_smoothing_gradient_is_softmax_minus_target"
    )
    text = text_of(counterexample)
    assert "torch.autograd.grad(" in text
    assert executed(text, folder).returncode == 1
    Path("loss.py").write_text(LOSS.format(given="scores"))
    done = executed(text, folder)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "wrong",
    [{"usual": "query.shape[-1] ** (-1.0 if is_causal else -0.5)"}, {"hidden": "~attn_mask.roll(1, -1)"}],
)
def test_a_script_speaks_the_functions_own_convention(wrong, dtype, folder):
    """Parameters called attn_mask and is_causal, in a file that knows nothing of qkverify."""
    law = "causal_alignment_when_lengths_differ" if "usual" in wrong else "masks_compose"
    counterexample = of_file(
        "mine.py", TORCH.format(**{**RIGHT, **wrong}), dtype, law, "agrees_with_reference"
    )
    text = text_of(counterexample)
    assert ("is_causal=True" if "usual" in wrong else "attn_mask=mask") in text
    assert "qkverify" not in text
    assert_fails_as(counterexample, executed(text, folder))
    (folder / "mine.py").write_text(TORCH.format(**RIGHT))
    done = executed(text, folder)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("wrong", "law"),
    [
        ({"delta": "0"}, "vjp_agrees_with_reference"),
        ({"body": "return (weights(query, key) @ value)[..., :1]"}, "shape_dtype_device"),
        ({"body": "return (weights(query, key) @ value).astype(np.float16)"}, "shape_dtype_device"),
        ({"body": "query *= 2; return weights(query / 2, key) @ value"}, "inputs_are_not_written"),
        ({"body": "return weights(query, key)[:, :, : 1 // (key.shape[2] < 3)] @ value"}, "agrees_with_reference"),
        ({"body": "n = min(key.shape[2], value.shape[2]); return weights(query, key[:, :, :n]) @ value[:, :, :n]"},
         "mismatched_sizes_raise"),
    ],
    ids=["gradient", "shape", "dtype", "written", "raises", "refuses"],
)  # fmt: skip
def test_failures_of_every_kind_have_a_script(wrong, law, folder):
    counterexample = of_file(
        "plain.py", NUMPY.format(**{**GOOD, **wrong}), "float32", law, requires=("G == H", "K >= 1")
    )
    text = text_of(counterexample)
    done = executed(text, folder)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "AssertionError" in done.stderr.splitlines()[-1]
    (folder / "plain.py").write_text(NUMPY.format(**GOOD))
    done = executed(text, folder)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_cannot_be_shown_has_no_script(folder):
    """A function that remembers earlier calls is right in a fresh process."""
    counterexample = of_mutant("B146")
    assert store.script_of(counterexample.replay) is None
    assert "script" not in counterexample.message
    assert "qkverify replay" in counterexample.message


def test_a_script_that_cannot_be_made_loses_no_message(monkeypatch):
    monkeypatch.setattr("qkverify.counterexamples.scripts.cases", lambda *_: 1 / 0)
    assert "qkverify replay" in of_mutant("B007").message
