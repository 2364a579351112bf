"""Numbers, biases and blocks at which a kernel fails alone: each is right on ordinary ones."""

from __future__ import annotations

import numpy as np

from qkverify.implementations.mutants.correct import gradients, textbook
from qkverify.implementations.mutants.correct.call import Call
from qkverify.implementations.mutants.correct.gradients import BACKWARD
from qkverify.implementations.mutants.correct.planting import mutant

BLOCK = 64


@mutant("A046", step="weights", gradients=BACKWARD, offers=("bias", "scale"), evidence="inferred")
def row_hidden_by_the_bias_is_nan_backward(
    call: Call, scores: np.ndarray, lse: np.ndarray, seen: np.ndarray
) -> np.ndarray:
    """The backward pass knows rows without keys by the mask; a bias of -inf that hides a whole row gives exp(-inf - -inf)."""
    hidden_by_bias = np.isneginf(scores) & np.isneginf(lse)
    return gradients.weights(call, scores, lse, seen | hidden_by_bias)  # right: seen


@mutant("A047", step="weights", gradients=BACKWARD, offers=("bias", "scale"), evidence="inferred")
def empty_half_of_a_tile_overflows(
    call: Call, scores: np.ndarray, lse: np.ndarray, seen: np.ndarray
) -> np.ndarray:
    """The empty half of a last tile of 128 keys holds scores of 0. Its exp(0 - lse) is multiplied by 0 afterwards, not left out:
    infinity times 0 where the log-sum-exp is below -88.7."""
    weights = gradients.weights(call, scores, lse, seen)
    past_the_end = np.exp(-lse) * 0 if call.K % 128 == 64 else 0  # right: 0
    return np.asarray(weights + past_the_end)


@mutant("A048", step="add_bias", offers=("bias", "scale"), evidence="inferred")
def low_bias_hides(call: Call, scores: np.ndarray) -> np.ndarray:
    """A finite bias of -100 and below counts as -inf, though all keys of a row may have it."""
    bias = (
        call.bias if call.bias is None else np.where(call.bias <= -100, -np.inf, call.bias)
    )  # right: call.bias
    return textbook.add_bias(call.but(bias=bias), scores)


@mutant("A049", step="load_value", dtypes=("float32",), evidence="inferred")
def values_are_divided_by_their_norm(call: Call) -> np.ndarray:
    """Rows of the values are scaled to norm one and back: the square of a large number is infinite."""
    norm = np.sqrt((call.value * call.value).sum(-1, keepdims=True))
    return np.asarray(call.value / np.where(norm == 0, 1, norm) * norm)  # right: call.value


@mutant("A050", step="products", dtypes=("float32",), evidence="inferred")
def products_are_clamped_as_in_half_precision(call: Call, query: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Every product is held within the numbers of float16."""
    return np.clip(textbook.products(call, query, key), -65504, 65504)  # right: no clip


@mutant("A051", step="scale", evidence="inferred")
def tiny_scale_counts_as_none(call: Call) -> float:
    """A scale below 1e-4 is taken for one that was not given."""
    given = call.scale is not None and not 0 < abs(call.scale) < 1e-4  # right: call.scale is not None
    return textbook.scale(call if given else call.but(scale=None))


@mutant("A052", step="mask", evidence="inferred")
def hidden_block_ends_the_row_of_blocks(call: Call) -> np.ndarray:
    """A block of 64 queries and 64 keys that the mask hides whole is skipped, and so are all keys after it."""
    mask = np.array(np.broadcast_to(call.mask, (call.B, call.H, call.Q, call.K)))
    for top in range(0, call.Q, BLOCK):
        rows = mask[:, :, top : top + BLOCK]
        for left in range(0, call.K, BLOCK):
            ended = ~rows[..., left : left + BLOCK].any(axis=(2, 3))  # (B, H)
            rows[..., left + BLOCK :] &= ~ended[:, :, None, None]  # right: nothing, the loop goes on
    return mask
