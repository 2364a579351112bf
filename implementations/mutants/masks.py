"""Masks: boolean, True = may attend, broadcast from the right to (B, H, Q, K)."""

from __future__ import annotations

import numpy as np

from qkverify.implementations.mutants.correct import textbook
from qkverify.implementations.mutants.correct.call import Call
from qkverify.implementations.mutants.correct.planting import mutant


@mutant("B074", step="mask", evidence="stated", threads="pytorch/pytorch#184180 microsoft/onnxruntime#24017")
def mask_is_indexed_by_the_flat_head(call: Call) -> np.ndarray:
    """A mask of one head per batch entry is read at b H + h, as if it had all the heads."""
    given = call.mask.reshape((1,) * (4 - call.mask.ndim) + call.mask.shape)
    flat = given.reshape(-1, *given.shape[2:])  # right: broadcast to (call.B, call.H, ...) before
    return flat[np.arange(call.B * call.H).reshape(call.B, call.H) % max(len(flat), 1)]


@mutant(
    "B075",
    step="lengths",
    offers=("key_lengths", "causal", "scale"),
    evidence="stated",
    threads="hyunwoongko/transformer#40",
)
def padding_is_put_on_the_query_axis(call: Call) -> np.ndarray:
    """The padding mask of the keys is laid along the queries, (B, 1, L, 1) instead of (B, 1, 1, L)."""
    places = np.arange(call.Q)[:, None]  # right: np.arange(call.K)[None, :]
    return places < call.key_lengths[:, None, None, None]


@mutant("B076", step="mask", evidence="stated", threads="onnx/onnx#8108")
def mask_per_head_is_taken_per_batch(call: Call) -> np.ndarray:
    """A mask (H, Q, K) is read as (B, Q, K)."""
    return call.mask[:, None] if call.mask.ndim == 3 else call.mask  # right: call.mask


@mutant("B077", step="mask", evidence="partly", threads="tensorflow/tensorflow#60626")
def mask_is_expanded_at_fixed_axes(call: Call) -> np.ndarray:
    """New axes go to fixed places, right for one rank only: a mask (Q, K) is read as (B, K)."""
    return call.mask[:, None, None, :] if call.mask.ndim == 2 else call.mask  # right: call.mask


@mutant(
    "B078",
    step="mask",
    evidence="stated",
    threads="lucidrains/x-transformers#160 rasbt/LLMs-from-scratch#1061 InseeFrLab/torchTextClassifiers#92",
)
def true_hides(call: Call) -> np.ndarray:
    """True is taken to mean masked."""
    return ~call.mask  # right: call.mask


@mutant("B081", step="hide", offers=("mask", "scale"), evidence="stated", threads="mead-ml/mead-baseline#679")
def masked_scores_are_thrown_away(call: Call, scores: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """The masking is not in place, and its result is assigned to nothing."""
    np.where(visible, scores, -np.inf)  # right: scores = np.where(visible, scores, -np.inf)
    return scores


@mutant("B082", step="mask", evidence="stated", threads="pytorch/pytorch#109072 pytorch/pytorch#117939")
def mask_is_filled_instead_of_the_bias(call: Call) -> np.ndarray:
    """-inf is written into the caller's boolean mask, where it is True: nothing is masked any more."""
    seen = call.mask  # right: seen = call.mask.copy(), and -inf into the bias
    seen[~call.mask] = -np.inf
    return seen


@mutant(
    "B084",
    step="prepare",
    evidence="stated",
    threads="OpenNMT/OpenNMT-py#2532 huggingface/transformers#46773",
)
def one_sequence_needs_no_mask(call: Call) -> Call:
    """The mask is applied only when there are several sequences."""
    return textbook.prepare(call.but(mask=call.mask if call.B > 1 else None))  # right: call


@mutant(
    "B104",
    step="prepare",
    evidence="stated",
    threads="lucidrains/x-transformers#174 huggingface/transformers#47946",
)
def cross_attention_loses_its_mask(call: Call) -> Call:
    """Where queries and keys are of different sequences, the mask is overwritten with None."""
    return textbook.prepare(call.but(mask=call.mask if call.Q == call.K else None))  # right: call


@mutant(
    "B144",
    step="prepare",
    evidence="partly",
    threads="pytorch/pytorch#118628 pytorch/pytorch#97409 pytorch/pytorch#97605",
)
def bias_is_taken_for_a_mask(call: Call) -> Call:
    """The fast path, without causality, treats a float bias as a boolean mask."""
    if call.bias is None or call.causal:
        return textbook.prepare(call)
    seen = (call.bias == 0) & (True if call.mask is None else call.mask)
    return textbook.prepare(call.but(bias=None, mask=seen))  # right: call


@mutant("A036", step="prepare", evidence="inferred")
def mask_is_known_by_its_corners(call: Call) -> Call:
    """A square mask whose first row sees the first key alone and whose last row sees all is taken for the causal one."""
    square = call.mask is not None and call.mask.shape[-2:] == (call.Q, call.Q) and call.Q == call.K > 1
    if (
        square
        and call.mask[..., 0, 0].all()
        and not call.mask[..., 0, 1:].any()
        and call.mask[..., -1, :].all()
    ):
        return textbook.prepare(call.but(mask=None, causal=True))  # right: where all of it is np.tri
    return textbook.prepare(call)
