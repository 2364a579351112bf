"""Which numbers are a pair in an encoding or a rotation that is not told: neighbours, or one from each half.

    rotary(x, positions)               x = (1, 0, 0, 0): the numbers that are not zero afterwards are the pair
    positional_encoding(length, dim)   position 0 is sin 0 and cos 0: (0, 1, 0, 1) or (0, 0, 1, 1)
    embedding(tokens, table)           the same, of a table of zeros

The frequencies have no part in it, so a function whose base is wrong is still judged by its own layout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from qkverify.runs.run import Run

SIZES = (4, 64, 128)  # of a token: the smallest that the function takes
Places = tuple[int, ...]


def layout(run: Run) -> str | None:
    """The layout of a call that does not name one; None if the result is neither. Raises what the function raises."""
    probe = PROBES[run.implementation.operation]
    for size in SIZES[:-1]:
        try:
            return probe(run, size)
        except Exception:  # a larger one may be taken
            continue
    return probe(run, SIZES[-1])


def _paired(places: Places, size: int) -> str | None:
    """The layout whose pair are these places of a token, after (1, 0, 0, ...) was turned."""
    known: dict[Places, str] = {(0, 1): "interleaved", (0, size // 2): "half"}
    return known.get(places)


def _cosines(places: Places, size: int) -> str | None:
    """The layout that has its ones in these places at position 0."""
    layouts = {tuple(range(1, size, 2)): "interleaved", tuple(range(size // 2, size)): "concatenated"}
    return layouts.get(places)


def _places(row: np.ndarray) -> Places:
    return tuple(int(i) for i in np.flatnonzero(row.astype(np.float64)))


def _token(run: Run, size: int) -> np.ndarray:
    """(1, 0, 0, ...) as (1,1,1,size)."""
    x = np.zeros((1, 1, 1, size), run.numpy_dtype)
    x[..., 0] = 1
    return x


def _rotary(run: Run, size: int) -> str | None:
    x = _token(run, size)
    return _paired(_places(run.call(x, np.array([1]), shape=x.shape)[0, 0, 0]), size)


def _rotary_pair(run: Run, size: int) -> str | None:
    x = _token(run, size)
    parts = run.call_parts(x, x, np.array([[1]]), shapes={"query": x.shape, "key": x.shape})
    layouts = {_paired(_places(part[0, 0, 0]), size) for part in parts}
    return layouts.pop() if len(layouts) == 1 else None


def _encoding(run: Run, size: int) -> str | None:
    options = run.given(dtype=run.dtype, device=run.device)
    return _cosines(_places(run.call(2, size, shape=(2, size), **options)[0]), size)


def _embedding(run: Run, size: int) -> str | None:
    table = np.zeros((1, size), run.numpy_dtype)
    return _cosines(_places(run.call(np.array([[0]]), table, shape=(1, 1, size))[0, 0]), size)


PROBES: Mapping[str, Callable[[Run, int], str | None]] = {
    "rotary": _rotary,
    "rotary_pair": _rotary_pair,
    "positional_encoding": _encoding,
    "embedding": _embedding,
}
