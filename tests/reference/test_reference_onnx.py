"""The reference against the `onnx` package: all its node tests of Attention and RotaryEmbedding.

What the operator calls otherwise, and how a case is put to the reference:

    attn_mask             bool: mask; float: bias; one that ends before the keys do hides the rest
    is_causal, windows    query i stands at key i (no cache), i + past length, or i + nonpad length - Q; where
                          that is neither alignment of the reference, an explicit mask
    past_key, past_value  stand before key and value
    nonpad_kv_seqlen      key_lengths; with causal or window, each batch entry alone, without its padding
    3D inputs             heads side by side: split_heads, merge_heads
    qk_matmul_output      mode 0: products, 1: after the cap, 2: after bias and mask, 3: weights
    softmax_precision     never fewer bits than the rest, so the same bound holds

The package computes in the dtype of the inputs, so the bounds are those of `reference_oracles` with its unit
roundoff. The outputs present_key and present_value are only copies of the inputs, and not looked at.
"""

from __future__ import annotations

import functools
import pickle
import subprocess
import sys
from typing import Any

import numpy as np

from qkverify.reference import attention, merge_heads, rotate, scores, split_heads, weights

from .reference_oracles import SCORE, bounds, magnitudes, relative

UNITS = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
FEWEST = {
    "Attention": 93,
    "RotaryEmbedding": 8,
}  # of onnx 1.23; a release that adds cases only adds to the test

# Cases of one operator are collected in a process of their own, because the package keeps them in a global
# list. It would import the cases of all operators, which takes half a minute; only one file is of interest.
COLLECT = """
import importlib, pickle, sys
from onnx.backend.test.case import node
from onnx.helper import get_attribute_value

operator, file = sys.argv[1:]
node.import_recursive = lambda package: importlib.import_module(f"{package.__name__}.{file}")
cases = []
for case in node.collect_testcases(operator):
    only, = case.model.graph.node[:1]
    if only.op_type == operator and "expanded" not in case.name:  # expanded: spelled out in simpler operators
        (inputs, outputs), = case.data_sets
        attributes = {a.name: get_attribute_value(a) for a in only.attribute}
        named = [
            dict(zip(filter(None, names), arrays))
            for names, arrays in ((only.input, inputs), (only.output, outputs))
        ]
        cases.append((case.name, attributes, *named))
sys.stdout.buffer.write(pickle.dumps(cases))
"""


@functools.cache
def cases(operator: str, file: str) -> list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """(name, attributes, inputs, outputs) of every node test of an operator."""
    command = [sys.executable, "-W", "ignore", "-c", COLLECT, operator, file]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    collected: list[Any] = pickle.loads(done.stdout)
    assert len(collected) >= FEWEST[operator]
    return collected


def test_every_attention_case_of_onnx_agrees() -> None:
    wrong = []
    for name, attributes, inputs, outputs in cases("Attention", "attention"):
        unit = UNITS[str(inputs["Q"].dtype)]
        by_reference = expected(attributes, inputs, unit)
        assert outputs.keys() - {"present_key", "present_value"} <= by_reference.keys(), name
        wrong += [(name, output) for output in outputs.keys() & by_reference.keys()
                  if not agree(outputs[output], *by_reference[output], unit)]  # fmt: skip
    assert wrong == []


def test_every_rotary_case_of_onnx_agrees() -> None:
    wrong = []
    for name, attributes, inputs, outputs in cases("RotaryEmbedding", "rotaryembedding"):
        flat = inputs["input"].ndim == 3
        x = inputs["input"].astype(np.float64)
        x = split_heads(x, attributes["num_heads"]) if flat else x
        turned = attributes.get("rotary_embedding_dim") or x.shape[-1]
        cosines, sines = (inputs[f"{wave}_cache"].astype(np.float64) for wave in ("cos", "sin"))
        if "position_ids" in inputs:
            cosines, sines = (wave[inputs["position_ids"]] for wave in (cosines, sines))
        layout = "interleaved" if attributes.get("interleaved") else "half"
        waves = cosines[:, None], sines[:, None]
        part, rest = x[..., :turned], x[..., turned:]
        exact = np.concatenate([rotate(part, *waves, layout), rest], axis=-1)
        unit = UNITS[str(inputs["input"].dtype)]
        # Two products and their sum: each term goes through two operations. What is not turned is exact.
        larger = np.abs(rotate(np.abs(part), *(np.abs(wave) for wave in waves), layout))
        other = np.abs(rotate(np.abs(part), np.abs(waves[0]), -np.abs(waves[1]), layout))
        bound = np.concatenate(
            [np.expm1(2 * unit) * np.maximum(larger, other), np.zeros(rest.shape)], axis=-1
        )
        exact, bound = (merge_heads(y) if flat else y for y in (exact, bound))
        if not agree(outputs["output"], exact, bound, 0.0):
            wrong.append(name)
    assert wrong == []


def agree(got: Any, exact: Any, bound: Any, unit: float) -> bool:
    """Whether each number is within its bound and one more rounding: a case stores outputs in their dtype."""
    got = got.astype(np.float64)
    assert got.shape == exact.shape
    with np.errstate(invalid="ignore"):  # scores of -inf are equal
        near = np.abs(got - exact) <= bound + unit * (np.abs(exact) + bound)
    return bool((near | (got == exact)).all())


def expected(attributes: dict[str, Any], inputs: dict[str, Any], unit: float) -> dict[str, tuple[Any, Any]]:
    """The outputs of one case by the reference, each with its bound."""
    query, key, value = (inputs[name].astype(np.float64) for name in "QKV")
    flat, past, lengths = query.ndim == 3, 0, inputs.get("nonpad_kv_seqlen")
    if flat:
        query = split_heads(query, attributes["q_num_heads"])
        key, value = (split_heads(x, attributes["kv_num_heads"]) for x in (key, value))
    if "past_key" in inputs:
        past = inputs["past_key"].shape[2]
        key, value = (
            np.concatenate([inputs[name].astype(np.float64), x], axis=2)
            for name, x in (("past_key", key), ("past_value", value))
        )
    window = tuple(attributes.get(f"{side}_window_size", -1) for side in ("left", "right"))
    ordered = bool(attributes.get("is_causal")) or max(window) >= 0
    options = {name: attributes[name] for name in ("scale", "softcap") if attributes.get(name)}
    options |= mask_or_bias(inputs.get("attn_mask"), key.shape[2])
    mode = attributes.get("qk_matmul_output_mode", 0)
    if lengths is None or not ordered:
        options |= {} if lengths is None else {"key_lengths": lengths}
        options = ordering(attributes, window, past, query, key, options)
        outputs = results(query, key, value, options, mode, unit)
    else:
        parts = []
        for b, n in enumerate(lengths):
            q, k, v = query[b : b + 1], key[b : b + 1, :, :n], value[b : b + 1, :, :n]
            entry_options = {name: of_entry(x, b, n) for name, x in options.items()}
            entry_options = ordering(attributes, window, n - q.shape[2], q, k, entry_options)
            parts.append(results(q, k, v, entry_options, mode, unit)["Y"])
        outputs = {"Y": tuple(np.concatenate(x) for x in zip(*parts, strict=True))}
    outputs["Y"] = tuple(merge_heads(x) for x in outputs["Y"]) if flat else outputs["Y"]
    return outputs


def results(
    query: Any, key: Any, value: Any, options: dict[str, Any], mode: int, unit: float
) -> dict[str, Any]:
    """output (B,H,Q,E) and qk_matmul_output (B,H,Q,K), each with its bound."""
    logits = scores(query, key, **options)
    S = magnitudes(query, key, **options)
    before = [("scale",), ("scale", "softcap")]
    if mode < 2:
        logits = scores(query, key, **{name: options[name] for name in before[mode] if name in options})
        S = magnitudes(query, key, **{name: options[name] for name in before[mode] if name in options})
    inner = logits, np.expm1((query.shape[-1] + SCORE) * unit) * S
    if mode == 3:
        p = weights(logits)
        inner = p, relative(S, query.shape[-1], unit=unit) * p
    output = attention(query, key, value, **options), bounds(query, key, value, unit=unit, **options)[0]
    return {"Y": output, "qk_matmul_output": inner}


def mask_or_bias(attn_mask: Any, keys: int) -> dict[str, Any]:
    """attn_mask under the reference's name, with the keys past its end hidden."""
    if attn_mask is None:
        return {}
    kind = "mask" if attn_mask.dtype == np.bool_ else "bias"
    hidden = False if kind == "mask" else -np.inf
    attn_mask = attn_mask if kind == "mask" else attn_mask.astype(np.float64)
    missing = np.full((*attn_mask.shape[:-1], keys - attn_mask.shape[-1]), hidden)
    return {kind: np.concatenate([attn_mask, missing], axis=-1)}


def of_entry(option: Any, entry: int, keys: int) -> Any:
    """The part of a mask or bias that belongs to one batch entry of so many keys."""
    if np.ndim(option) == 0:
        return option
    part = option[entry : entry + 1] if option.ndim == 4 and option.shape[0] > 1 else option
    return part[..., :keys]


def ordering(
    attributes: dict[str, Any], window: Any, offset: int, query: Any, key: Any, options: dict[str, Any]
) -> dict[str, Any]:
    """The options, and causal and window for queries that stand at i + offset."""
    causal = bool(attributes.get("is_causal"))
    left, right = (side if side >= 0 else None for side in window)
    Q, K = query.shape[2], key.shape[2]
    for alignment, start in (("top-left", 0), ("bottom-right", K - Q)):
        if offset == start:
            sides = None if left is None and right is None else (left, right)
            return options | {"causal": causal, "window": sides, "causal_alignment": alignment}
    ahead = np.arange(K) - (np.arange(Q)[:, None] + offset)
    allowed = (ahead <= (0 if causal else K)) & (ahead >= (-K if left is None else -left))
    allowed &= ahead <= (K if right is None else right)
    return options | {"mask": allowed & options.get("mask", True)}
