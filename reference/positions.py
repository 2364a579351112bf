"""Where a token stands: sinusoidal encoding ("Attention is all you need", section 3.5), rotary embedding
("RoFormer", section 3.2) and the slopes of ALiBi ("Train short, test long", section 3).
"""

from __future__ import annotations

import numpy as np

from qkverify.reference.attention import stored
from qkverify.reference.sizes import Array


def angles(positions: Array, dim: int, base: Array = 10000.0) -> Array:
    """position / base^(2i/dim), i < dim/2: positions (..., L) -> (..., L, dim/2). Raises for an odd dim."""
    if dim % 2:
        raise ValueError(f"the size {dim} must be even: sines and cosines come in pairs")
    exponents = np.arange(0, dim, 2) / max(dim, 1)                          # (dim/2)
    return positions[..., None] / base**exponents                           # (..., L, dim/2)


def joined(first: Array, second: Array, layout: str) -> Array:
    """Pairs as neighbours ("interleaved") or as two halves (other layouts): twice (..., n) -> (..., 2n)."""
    if layout == "interleaved":
        return np.reshape(np.stack([first, second], axis=-1), (*first.shape[:-1], 2 * first.shape[-1]))
    return np.concatenate([first, second], axis=-1)


def positional_encoding(
    length: int, dim: int, *, layout: str = "interleaved", base: Array = 10000.0, start: Array = 0
) -> Array:
    """PE(p, 2i) = sin(p / base^(2i/dim)) and PE(p, 2i+1) = cos of the same, p from `start` on: (length, dim).

    The layout "concatenated" has the sines in the first half and the cosines in the second.
    """
    angle = angles(np.arange(length) + start, dim, base)                    # (length, dim/2)
    return stored(joined(np.sin(angle), np.cos(angle), layout))             # (length, dim)


def rotate(x: Array, cosines: Array, sines: Array, layout: str = "interleaved") -> Array:
    """Each pair of x (..., L, D), neighbours or i and i + D/2 ("half"), turned: cos, sin (..., L, D/2)."""
    half = x.shape[-1] // 2
    a, b = (x[..., 0::2], x[..., 1::2]) if layout == "interleaved" else (x[..., :half], x[..., half:])
    return stored(joined(a * cosines - b * sines, a * sines + b * cosines, layout))  # (..., L, D)


def rotary(x: Array, positions: Array, *, base: Array = 10000.0, layout: str = "interleaved") -> Array:
    """x (..., L, D), positions (L,) or broadcast to (..., L), of either sign: pair i of x_p turned by p / base^(2i/D)."""
    angle = angles(positions, x.shape[-1], base)                            # (..., L, D/2)
    return rotate(x, stored(np.cos(angle)), stored(np.sin(angle)), layout)  # (..., L, D)


def alibi_slopes(heads: int) -> Array:
    """2^(-8h/H), h = 1..H, if H is a power of two; else those of the one below, then the odd of the next."""
    power = 2 ** max(heads.bit_length() - 1, 0)
    slopes = 2.0 ** (-8.0 / power * np.arange(1, power + 1))                # (power)
    between = 2.0 ** (-4.0 / power * np.arange(1, 2 * power + 1, 2))        # (power)
    return np.concatenate([slopes, between])[:heads]                        # (heads)
