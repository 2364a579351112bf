"""Flash attention in NumPy: blocks of queries meet tiles of keys, and the whole score matrix never exists.

The forward, for a block of queries and one tile of keys after another:

1. scores = (scale * query) key^T. The scale is folded into the block of queries, once.
2. The running maximum `top` of each row grows to `new`, and weights = exp(scores - new), in place.
3. What is summed so far shrinks by exp(top - new): the total of the weights, and the weights times the values. Then this
   tile is added (Milakov and Gimelshein, https://arxiv.org/abs/1805.02867; FlashAttention,
   https://arxiv.org/abs/2205.14135).
4. After the last tile: output = result / total, and log-sum-exp = top + log(total).

The backward computes the weights of a tile again, exp(scores - log-sum-exp), and takes delta = rowsum(dO * O) from the
stored output, so that five products a tile are enough (FlashAttention-2, https://arxiv.org/abs/2307.08691):

    dV += P^T dO      dP = dO V^T      dS = P * (dP - delta)      dQ += scale dS K      dK += dS^T (scale Q)

Why it is fast. A tile of scores stays in the cache of its core, and each step is one call of NumPy on the whole tile, in place.
A sum of each row is a product with a column of ones, which costs a quarter of `sum`. Tiles that no query of a block sees are
skipped, and tiles that all see are computed without a mask (`tiles`). Large calls share their blocks among threads, each with a
BLAS of one thread (`threads`).

A query that sees no key gets zeros, and a key that a query does not see has no influence on it, not even by NaN.
Memory beyond the results is a few tiles for each thread. Short sequences have short tiles, so that they too meet several.

Dimension letters: B batch, H query heads, G key/value heads, h query heads that read one key/value head, Q queries, K keys,
D key size, E value size; R queries of a block, T keys of a tile.
"""

from __future__ import annotations

import numpy as np

from qkverify import implementation
from qkverify.implementations.numpy_tiled import threads
from qkverify.implementations.numpy_tiled.tiles import (
    KEYS,
    ROWS,
    Array,
    Block,
    Call,
    Window,
    by_key,
    finite,
    product,
)


@implementation(
    name="numpy_tiled",
    summary="online softmax over tiles of keys in cache, with tiled gradients",
    arrays="numpy",
    dtypes=("float64", "float32"),
    tile=(KEYS.start, ROWS.start),
    causal_alignment="bottom-right",
    empty_rows="zero",
    masked_values="ignored",
    deterministic=True,
    batch_invariant=True,
    delta="output",
    lse="natural",
)
def attention(
    query: Array, key: Array, value: Array, *,
    mask: Array | None = None, bias: Array | None = None, causal: bool = False, window: Window | None = None,
    scale: float | None = None, softcap: float | None = None,
    key_lengths: Array | None = None, return_lse: bool = False,
) -> Array | tuple[Array, Array]:  # fmt: skip
    """softmax(query key^T) value, (B,H,Q,E), and the log-sum-exp, (B,H,Q), if it is asked for."""
    call = Call(query, key, value, mask, bias, causal, window, scale, softcap, key_lengths)
    output = np.empty((*call.query.shape[:4], value.shape[3]), query.dtype)
    lse = np.empty((*call.query.shape[:4], 1), query.dtype)

    def write(block: Block) -> None:
        output[block.rows], lse[block.rows] = attend(call, block)

    threads.run(write, call.blocks(), call.work)
    output = output.reshape(*query.shape[:3], value.shape[3])
    return (output, lse.reshape(query.shape[:3])) if return_lse else output


@np.errstate(invalid="ignore", divide="ignore", over="ignore")
def attend(call: Call, block: Block) -> tuple[Array, Array]:
    """The outputs (b,g,h,R,E) and the log-sum-exps (b,g,h,R,1) of one block of queries."""
    query, value = call.scaled(block), call.value[block.shared]
    top = np.full((*query.shape[:-1], 1), -np.inf, query.dtype)  # running maximum of the scores: (b,g,h,R,1)
    total = np.zeros_like(top)  # running sum of exp(score - top)
    result = np.zeros((*query.shape[:-1], value.shape[-1]), query.dtype)  # likewise, times the values
    room, ones = np.empty((*query.shape[:-1], call.tile), query.dtype), np.ones((call.tile, 1), query.dtype)
    for keys, hidden in call.tiles(block):
        weights = call.logits(block, query, keys, hidden, room)  # (b,g,h,R,T)
        new = np.maximum(top, weights.max(axis=-1, keepdims=True))
        shift = finite(new)
        np.exp(np.subtract(weights, shift, out=weights), out=weights)
        decay = np.exp(top - shift)
        total = total * decay + weights @ ones[: weights.shape[-1]]
        result *= decay
        result += product(weights, value[..., keys, :], hidden)
        top = new
    result /= np.where(total == 0, 1, total)
    return result, finite(top) + np.log(total)


def attention_vjp(
    query: Array, key: Array, value: Array, upstream: Array, *,
    mask: Array | None = None, bias: Array | None = None, causal: bool = False, window: Window | None = None,
    scale: float | None = None, softcap: float | None = None,
    key_lengths: Array | None = None,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """The gradients of sum(upstream * attention(...)) by query, key and value."""
    call = Call(query, key, value, mask, bias, causal, window, scale, softcap, key_lengths, upstream)
    gradients = tuple(np.zeros_like(x, order="C", subok=False) for x in (query, key, value))
    d_query = gradients[0].reshape(call.query.shape)
    d_key, d_value = (gradient[:, :, None] for gradient in gradients[1:])
    # Blocks that read the same keys add to the same gradients: one task has them all.
    threads.run(
        lambda blocks: [pull(call, block, d_query, d_key, d_value) for block in blocks],
        call.blocks_by_key_head(),
        call.work,
    )
    return gradients


@np.errstate(invalid="ignore", divide="ignore", over="ignore")
def pull(call: Call, block: Block, d_query: Array, d_key: Array, d_value: Array) -> None:
    """Write the gradient of one block of queries, and add what it gives to those of the keys and values that it sees."""
    query, upstream, shared = call.scaled(block), call.upstream[block.rows], block.shared
    key, value, d_key, d_value = call.key[shared], call.value[shared], d_key[shared], d_value[shared]
    output, lse = attend(call, block)
    delta = (upstream * output).sum(axis=-1, keepdims=True)  # (b,g,h,R,1)
    shift, result = finite(lse), np.zeros_like(query)
    rooms = [np.empty((*query.shape[:-1], call.tile), query.dtype) for _ in range(2 + call.capped)]
    for keys, hidden in call.tiles(block):
        d_scores, *slope = (room[..., : keys.stop - keys.start] for room in rooms[1:])
        weights = call.logits(block, query, keys, hidden, rooms[0], *slope)  # (b,g,h,R,T)
        np.exp(np.subtract(weights, shift, out=weights), out=weights)
        d_value[..., keys, :] += by_key(weights, upstream, hidden)
        np.matmul(upstream, value[..., keys, :].swapaxes(-1, -2), out=d_scores)
        d_scores -= delta
        for factor in (weights, *slope):
            d_scores *= factor
        if hidden is not None:
            np.copyto(d_scores, 0, where=hidden)
        result += product(d_scores, key[..., keys, :], hidden)
        d_key[..., keys, :] += by_key(d_scores, query, hidden)
    d_query[block.rows] = result * query.dtype.type(call.scale)
