"""Options that a function refuses together are found out, said once, and not drawn together."""

from __future__ import annotations

import numpy as np
import pytest

from qkverify import probes
from qkverify.contract import describe
from qkverify.probes import sentences
from qkverify.verification.checking import verify


def attention(query, key, value, *, mask=None, causal=False, scale=None):
    scores = query @ key.swapaxes(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        scores = np.where(np.tri(*scores.shape[-2:], dtype=bool), scores, -np.inf)
    scores = scores if mask is None else np.where(mask, scores, -np.inf)
    with np.errstate(invalid="ignore"):
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return np.nan_to_num(weights / weights.sum(-1, keepdims=True)) @ value


def never_both(query, key, value, *, mask=None, causal=False, scale=None):
    if mask is not None and causal:
        raise ValueError("give a mask or causal=True")
    return attention(query, key, value, mask=mask, causal=causal, scale=scale)


def sometimes_both(query, key, value, *, mask=None, causal=False, scale=None):
    """As torch: only one of its ways looks."""
    if mask is not None and causal and query.shape[-1] != value.shape[-1]:
        raise ValueError("give a mask or causal=True")
    return attention(query, key, value, mask=mask, causal=causal, scale=scale)


def no_mask(query, key, value, *, mask=None, causal=False, scale=None):
    if mask is not None:
        raise ValueError("masks are not ready")
    return attention(query, key, value, causal=causal, scale=scale)


def fitted(function):
    return probes.fitted(describe(function, arrays="numpy", dtypes=("float32",), differentiable=False))


@pytest.mark.parametrize("function", [never_both, sometimes_both])
def test_a_pair_that_raises_is_a_limit(function):
    implementation = fitted(function)
    assert implementation.not_together == (("mask", "causal"),)
    assert "not mask with causal" in sentences.inferred([implementation])
    (remark,) = [remark for remark in implementation.remarks if "not taken together" in remark]
    assert (
        remark
        == "mask and causal are not taken together, else it raises ValueError: give a mask or causal=True"
    )
    assert implementation.refuses({}, {"mask": np.ones((1, 1, 1, 1), bool), "causal": True})
    assert implementation.refuses({}, {"causal": True}) is None


def mask_or_bias(query, key, value, *, attn_mask=None, causal=False):
    """One parameter takes booleans, and floats that are added to the scores."""
    if attn_mask is not None and causal:
        raise ValueError("give a mask or causal=True")
    if attn_mask is not None and attn_mask.dtype != bool:
        return added(query, key, value, attn_mask)
    return attention(query, key, value, mask=attn_mask, causal=causal)


def added(query, key, value, bias):
    scores = query @ key.swapaxes(-1, -2) * query.shape[-1] ** -0.5 + bias
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True)) @ value


def test_a_parameter_that_is_two_options_is_said_once():
    implementation = fitted(mask_or_bias)
    assert implementation.not_together == (("mask", "causal"), ("bias", "causal"))
    assert [remark for remark in implementation.remarks if "not taken together" in remark] == [
        "attn_mask and causal are not taken together, else it raises ValueError: give a mask or causal=True"
    ]
    assert sentences.inferred([implementation]).count("not attn_mask with causal") == 1


@pytest.mark.parametrize("function", [attention, no_mask])
def test_an_option_that_raises_alone_is_none(function):
    assert fitted(function).not_together == ()


def test_the_laws_hold_of_a_function_that_takes_either():
    laws = [
        "agrees_with_reference",
        "masks_compose",
        "all_true_mask_is_neutral",
        "causal_equals_explicit_mask",
    ]
    assert not verify(fitted(never_both), profile="quick", laws=laws).failures
