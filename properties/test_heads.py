"""Heads are independent attentions that lie beside each other in memory; grouped heads share keys and values."""

from __future__ import annotations

import numpy as np
from hypothesis import assume

from qkverify.reference.multi_head import merge_heads, split_heads
from qkverify.rounding import EXACT, Bounded
from qkverify.runs.assertions import assert_same_result, assert_within_bound
from qkverify.strategies.attention_problems import problems
from qkverify.verification.laws import law


def one_head(run, problem, head):
    """The problem of one query head on its own, or None where one head alone is not offered."""
    s = problem.sizes
    shared = head // (s["H"] // s["G"])
    changes = {
        "query": problem.query[:, head : head + 1],
        "key": problem.key[:, shared : shared + 1],
        "value": problem.value[:, shared : shared + 1],
    }
    if problem.upstream is not None:
        changes["upstream"] = problem.upstream[:, head : head + 1]
    for name in ("mask", "bias"):
        array = getattr(problem, name)
        if array is not None and array.ndim >= 3 and array.shape[-3] != 1:
            changes[name] = array[..., head : head + 1, :, :]
    for name in ("alibi_slopes", "sinks"):
        if getattr(problem, name) is not None:
            changes[name] = getattr(problem, name)[head : head + 1]
    assume(run.implementation.accepts({**s, "H": 1, "G": 1}) is None)
    return problem.replace(**changes, layouts={})


@law(
    "All heads at once equal one head at a time, concatenated.",
    source="Illustrated Transformer, part 2: eight heads, concatenated",
    problem=problems(long=False),
)
def test_head_concat_equivalence(run, problem):
    together = run(problem)
    for head in range(problem.sizes["H"]):
        assert_within_bound(
            run(one_head(run, problem, head)),
            together[:, head : head + 1],
            what=f"head {head} alone against together",
        )


@law("Projecting the concatenated heads is the sum of each head times its block of W_O.", source="Concat(h_1 .. h_n) W_O = sum h_i W_O^i",
     problem=problems(only=("causal", "mask"), long=False, tame=True), width=(1, 2, 3, 5), seed=range(100))  # fmt: skip
def test_concat_projection_is_sum_of_blocks(run, problem, width, seed):
    s = problem.sizes
    w_o = np.random.default_rng(seed).integers(-2, 3, size=(s["H"] * s["E"], width)).astype(np.float64)
    merged = merge_heads(run(problem))
    blocks = [one_head(run, problem, head) for head in range(s["H"])]
    total = Bounded(np.zeros((s["B"], s["Q"], width)), 0.0, EXACT)
    for head, block in enumerate(blocks):
        total = total + run(block)[:, 0] @ w_o[head * s["E"] : (head + 1) * s["E"]]
    assert_within_bound(merged @ w_o, total, what="projection")


@law("Reordering the heads, with their keys and values, reorders the output likewise.", source="heads are independent",
     problem=problems(only=("causal", "scale", "softcap", "key_lengths", "window"), sizes={"H": "G"}, long=False), seed=range(100))  # fmt: skip
def test_head_permutation(run, problem, seed):
    order = np.random.default_rng(seed).permutation(problem.sizes["H"])
    permuted = problem.replace(
        query=problem.query[:, order], key=problem.key[:, order], value=problem.value[:, order]
    )
    assert_within_bound(run(permuted), run(problem)[:, order])


@law("Splitting into heads and merging them again gives back what was split: heads taken from (B, L, H*D) memory and merged equal heads on their own.",
     source="'Attention is all you need', section 3.2.2", problem=problems(only=("causal",), sizes={"H": "G", "K": "Q"}, long=False))  # fmt: skip
def test_split_then_merge_is_identity(run, problem):
    heads = problem.sizes["H"]
    wide = {
        name: np.ascontiguousarray(merge_heads(getattr(problem, name))) for name in ("query", "key", "value")
    }
    split = problem.replace(**{name: split_heads(x, heads) for name, x in wide.items()}, layouts={})
    assert_within_bound(split_heads(merge_heads(run(split)), heads), run(problem.replace(layouts={})))


@law("Grouped heads equal heads whose keys and values are repeated for each query head.", source="grouped-query attention (Ainslie et al. 2023): head h reads group h // (H / G)",
     problem=problems(long=False), when=lambda run: "takes equal numbers of heads" if run.implementation.accepts({"B": 1, "H": 2, "G": 1}) else None)  # fmt: skip
def test_gqa_equals_repeated_keys(run, problem):
    assume(problem.group > 1)
    repeated = {name: np.repeat(getattr(problem, name), problem.group, axis=1) for name in ("key", "value")}
    assert_within_bound(run(problem), run(problem.replace(**repeated)))


@law("The gradient of a shared key or value is the sum over the heads that share it.", source="grouped-query attention; gradient of a repetition", needs="gradients",
     problem=problems(upstream=True, only=("causal", "scale", "mask"), long=False),
     when=lambda run: "takes equal numbers of heads" if run.implementation.accepts({"B": 1, "H": 2, "G": 1}) else None)  # fmt: skip
def test_gqa_gradients_are_summed(run, problem):
    assume(problem.group > 1)
    s = problem.sizes
    repeated = problem.replace(
        **{name: np.repeat(getattr(problem, name), problem.group, axis=1) for name in ("key", "value")}
    )
    shared, apart = run.gradients(problem), run.gradients(repeated)
    for name in ("key", "value"):
        summed = apart[name].reshape(s["B"], s["G"], problem.group, *apart[name].shape[2:]).sum(axis=2)
        assert_within_bound(shared[name], summed, what=f"gradient of {name}")


@law("Multi-query attention is grouped attention with one group: every head reads the same keys.", source="multi-query attention (Shazeer 2019)",
     problem=problems(sizes={"G": 1}, long=False), when=lambda run: "takes equal numbers of heads" if run.implementation.accepts({"B": 1, "H": 2, "G": 1}) else None)  # fmt: skip
def test_mqa_is_gqa_with_one(run, problem):
    assume(problem.sizes["H"] > 1)
    assert_within_bound(run(problem), run.exact(problem))


@law("A head's result does not depend on what the other heads hold.", source="heads are independent", exact=True, problem=problems(long=False),
     head=range(9), fill=(0.0, 1.0, 100.0))  # fmt: skip
def test_head_independence(run, problem, head, fill):
    s = problem.sizes
    kept = head % s["H"]
    shared = kept // (s["H"] // s["G"])
    assume(s["H"] > 1)
    query, key, value = problem.query.copy(), problem.key.copy(), problem.value.copy()
    query[:, np.arange(s["H"]) != kept] = fill
    key[:, np.arange(s["G"]) != shared] = fill
    value[:, np.arange(s["G"]) != shared] = fill
    changed = problem.replace(query=query, key=key, value=value)
    got, earlier = run.values(changed)[:, kept], run.values(problem)[:, kept]
    assert_same_result(run, got, earlier, lambda: run.bound(problem)[0][:, kept], what=f"head {kept}")


@law("With one head, multi-head attention is plain attention: scores, softmax, weighted sum.", source="'Attention is all you need', section 3.2.1",
     problem=problems(sizes={"B": 1, "G": 1, "H": 1}))  # fmt: skip
def test_one_head_is_plain_attention(run, problem):
    assert_within_bound(run(problem), run.exact(problem))
