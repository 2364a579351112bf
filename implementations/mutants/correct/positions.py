"""The pieces of sinusoidal and rotary encodings and of the embedding that takes them, right."""

from __future__ import annotations

import numpy as np


def exponents(dim: int) -> np.ndarray:
    """(ceil(dim / 2),): 2 i / dim for each pair of columns."""
    return np.arange(0, dim, 2) / max(dim, 1)


def encode(length: int, dim: int, sine: np.ndarray, cosine: np.ndarray, layout: str) -> np.ndarray:
    """(length, dim): sines and cosines at these frequencies, neighbours in pairs or half after half."""
    places = np.arange(length)[:, None]
    sines, cosines = np.sin(places * sine), np.cos(places * cosine)[:, : dim // 2]
    if layout == "concatenated":
        return np.concatenate([sines, cosines], axis=1)
    table = np.empty((length, dim))
    table[:, 0::2], table[:, 1::2] = sines, cosines
    return table


def positional_encoding(length: int, dim: int, *, layout: str = "interleaved") -> np.ndarray:
    frequencies = 10000.0 ** -exponents(dim)
    return encode(length, dim, frequencies, frequencies, layout)


def angles(positions: np.ndarray, dim: int) -> np.ndarray:
    """(..., L, dim / 2): position times frequency."""
    return positions[..., None] * 10000.0 ** -exponents(dim)


def pairs(x: np.ndarray, layout: str) -> tuple[np.ndarray, np.ndarray]:
    """The two members of each pair of columns, (..., dim / 2) each: neighbours, or one from each half."""
    half = x.shape[-1] // 2
    return (x[..., 0::2], x[..., 1::2]) if layout == "interleaved" else (x[..., :half], x[..., half:])


def joined(first: np.ndarray, second: np.ndarray, layout: str) -> np.ndarray:
    """`pairs`, undone."""
    if layout == "interleaved":
        return np.stack([first, second], axis=-1).reshape(*first.shape[:-1], -1)
    return np.concatenate([first, second], axis=-1)


def rotate(x: np.ndarray, cosine: np.ndarray, sine: np.ndarray, layout: str) -> np.ndarray:
    """Each pair of columns turned by its angle; `cosine` and `sine` broadcast to (..., dim / 2)."""
    first, second = pairs(x, layout)
    turned = joined(first * cosine - second * sine, first * sine + second * cosine, layout)
    return turned.astype(x.dtype)


def rotary(x: np.ndarray, positions: np.ndarray, *, layout: str = "interleaved") -> np.ndarray:
    """x (B, H, L, D), positions (L,)."""
    angle = angles(positions, x.shape[-1])
    return rotate(x, np.cos(angle), np.sin(angle), layout)


def rotary_pair(
    query: np.ndarray, key: np.ndarray, positions: np.ndarray, *, layout: str = "interleaved"
) -> tuple[np.ndarray, np.ndarray]:
    """query (B, H, L, D), key (B, G, L, D), positions (B, L)."""
    every_head = positions[:, None]
    return rotary(query, every_head, layout=layout), rotary(key, every_head, layout=layout)


def places(tokens: np.ndarray, padding: np.ndarray | None) -> np.ndarray:
    """(B, L): the position of each token, counted from the first that is no padding."""
    first = np.zeros(len(tokens), int) if padding is None else padding
    return np.maximum(np.arange(tokens.shape[1]) - first[:, None], 0)


def embedding(
    tokens: np.ndarray, table: np.ndarray, *, at: np.ndarray, layout: str = "interleaved",
    factor: float | None = None,
) -> np.ndarray:  # fmt: skip
    """tokens (B, L), table (V, M), at (B, L) -> (B, L, M)."""
    size = table.shape[1]
    angle = angles(at, size)
    encoded = joined(np.sin(angle), np.cos(angle), layout).astype(table.dtype)
    return table[tokens] * table.dtype.type(size**0.5 if factor is None else factor) + encoded
