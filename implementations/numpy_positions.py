"""Positions in NumPy: sinusoidal encodings, alone and added to words, rotary embeddings and ALiBi slopes.

The angles are computed in float64 and the sines rounded at the end: in float32 the angle of position 100,000 would have lost
two digits before the sine is taken.
"""

from __future__ import annotations

import numpy as np

from qkverify import implementation

BASE = 10000.0


def angles(positions: np.ndarray, dim: int) -> np.ndarray:
    """p / 10000^(2i/dim), float64: (..., L) -> (..., L, dim/2)."""
    return positions[..., None] / BASE ** (np.arange(0, dim, 2) / dim)


def joined(first: np.ndarray, second: np.ndarray, layout: str) -> np.ndarray:
    """Two halves (..., n) as neighbours ("interleaved") or one after the other: (..., 2n)."""
    if layout == "interleaved":
        return np.stack([first, second], axis=-1).reshape(*first.shape[:-1], -1)
    return np.concatenate([first, second], axis=-1)


@implementation(name="numpy_encoding", dtypes=("float32", "float64"))
def positional_encoding(
    length: int, dim: int, *, layout: str = "interleaved", dtype: str = "float32"
) -> np.ndarray:
    """Sines and cosines of the angles: (length, dim)."""
    angle = angles(np.arange(length), dim)
    return joined(np.sin(angle), np.cos(angle), layout).astype(dtype)


@implementation(name="numpy_embedding", dtypes=("float32", "float64"))
def embedding(
    tokens: np.ndarray, table: np.ndarray, *, padding: np.ndarray | None = None, layout: str = "interleaved"
) -> np.ndarray:
    """sqrt(M) table[token] + encoding of its position, from the first that is no padding: (B,L), (V,M) -> (B,L,M)."""
    first = 0 if padding is None else padding[:, None]
    angle = angles(np.maximum(np.arange(tokens.shape[1]) - first, 0), table.shape[1])
    encoded = joined(np.sin(angle), np.cos(angle), layout).astype(table.dtype)
    return table[tokens] * table.dtype.type(table.shape[1] ** 0.5) + encoded


@implementation(name="numpy_rotary", dtypes=("float32", "float64"))
def rotary(x: np.ndarray, positions: np.ndarray, *, layout: str = "interleaved") -> np.ndarray:
    """Each pair of x (B,H,L,D) turned by the angle of its position (L,)."""
    half = x.shape[-1] // 2
    first, second = (
        (x[..., 0::2], x[..., 1::2]) if layout == "interleaved" else (x[..., :half], x[..., half:])
    )
    angle = angles(positions, x.shape[-1])
    sine, cosine = np.sin(angle).astype(x.dtype), np.cos(angle).astype(x.dtype)
    return joined(first * cosine - second * sine, first * sine + second * cosine, layout)


@implementation(name="numpy_rotary_pair", dtypes=("float32", "float64"))
def rotary_pair(
    query: np.ndarray, key: np.ndarray, positions: np.ndarray, *, layout: str = "interleaved"
) -> tuple[np.ndarray, np.ndarray]:
    """Query (B,H,L,D) and key (B,G,L,D), both turned by the angles of their positions (B,L)."""
    every_head = positions[:, None]  # (B,1,L)
    return rotary(query, every_head, layout=layout), rotary(key, every_head, layout=layout)


def rotary_vjp(
    x: np.ndarray, positions: np.ndarray, upstream: np.ndarray, *, layout: str = "interleaved"
) -> tuple[np.ndarray]:
    """The gradient of sum(upstream * rotary(x, positions)) by x: turned back."""
    return (rotary(upstream, -positions.astype(np.int64), layout=layout),)


def rotary_pair_vjp(
    query: np.ndarray, key: np.ndarray, positions: np.ndarray, of_query: np.ndarray, of_key: np.ndarray, *,
    layout: str = "interleaved",
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The gradients by query and key, each from that of its own turned form."""
    return rotary_pair(of_query, of_key, -positions.astype(np.int64), layout=layout)


@implementation(name="numpy_slopes", dtypes=("float32", "float64"))
def alibi_slopes(heads: int) -> np.ndarray:
    """2^(-8h/H) for H a power of two; else those of the power below, then every second one of the power above."""
    below = 1 << (heads.bit_length() - 1)
    slopes = 2.0 ** (-8.0 * np.arange(1, below + 1) / below)
    between = 2.0 ** (-8.0 * np.arange(1, 2 * below + 1, 2) / (2 * below))
    return np.concatenate([slopes, between[: heads - below]])
