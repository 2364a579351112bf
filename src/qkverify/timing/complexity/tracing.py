"""How long a signal travels: chains of matrix products, followed through the very code that is timed.

The NumPy code of a layer is called with arrays that hold the length of a chain instead of a number: a matrix product makes a
chain one longer, everything else hands it on. The longest chain to any output is the number of sequential steps: products that
wait for one another, however many processors there are. The shortest chain from the first input alone to the last output, through
as many layers as connect the two, is the path length. One product counts as one step, as in the source, which leaves out the log
of its own length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from qkverify.timing.complexity.layer import Layer, Sizes

MOST_LAYERS = 10_000


class Chain(np.ndarray):
    """Lengths of chains. `neutral` is what a constant has; `join` says which of two chains counts."""

    neutral: ClassVar[float]
    join: ClassVar[np.ufunc]

    @property
    def lengths(self) -> np.ndarray:
        return self.view(np.ndarray)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        parts = [self._lengths(x) for x in inputs]
        if method == "reduce":
            return self._of(self.join.reduce(parts[0], **_shape_of(options)))
        if method != "__call__" or options:
            return NotImplemented
        if ufunc is np.matmul:
            return self._of(self._product(*parts))
        length = parts[0]
        for part in parts[1:]:
            length = self.join(length, part)
        return self._of(length)

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        if function in (np.concatenate, np.stack):
            return self._of(function([self._lengths(x) for x in args[0]], *args[1:], **options))
        return super().__array_function__(function, types, args, options)

    def _product(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """An element of a product joins a row with a column, and is one step further."""
        rows = self.join.reduce(left, axis=-1)
        columns = self.join.reduce(right, axis=-2)
        joined = columns if left.ndim == 1 else self.join(rows[..., None], columns[..., None, :])
        return np.asarray(1 + (self.join(rows, joined) if left.ndim == 1 else joined))

    def _lengths(self, x: Any) -> np.ndarray:
        if isinstance(x, Chain):
            return x.lengths
        return np.full(np.shape(x), self.neutral)

    def _of(self, lengths: Any) -> Chain:
        return np.asarray(lengths, dtype=np.float64).view(type(self))


class Longest(Chain):
    """Constants and inputs are there at once: 0. The later of two is waited for."""

    neutral, join = 0.0, np.maximum


class Shortest(Chain):
    """What the signal does not reach is infinitely far. The earlier of two counts."""

    neutral, join = np.inf, np.minimum


def steps(layer: Layer, sizes: Sizes) -> int:
    """The sequential steps of one layer: products on the longest chain from any input to any output."""
    chains = [np.zeros(x.shape).view(Longest) for x in _inputs(layer, sizes)]
    return int(layer.numpy(*chains, sizes).lengths.max())


def path(layer: Layer, sizes: Sizes) -> tuple[int, int]:
    """(products on the shortest chain from the first input to the last output, layers that it takes)."""
    sequence, *weights = _inputs(layer, sizes)[layer.sequences - 1 :]
    signal = np.full(sequence.shape, np.inf)
    signal[0] = 0
    stacked = _stacked(
        layer, sizes, signal.view(Shortest), weights, lambda x: bool(np.isfinite(x.lengths[-1]).all())
    )
    return int(stacked[0].lengths[-1].min()), stacked[1]


def reached_in(layer: Layer, sizes: Sizes) -> int:
    """The layers until the last output depends on the first input, by torch's gradient: how the chains are checked."""
    import torch

    arrays = layer.laid_out("torch", (torch.from_numpy(x).double() for x in _inputs(layer, sizes)))
    first, weights = arrays[0].requires_grad_(), arrays[layer.sequences :]

    def connected(x: Any) -> bool:
        (slope,) = torch.autograd.grad(x[-1].sum(), first, retain_graph=True)
        return bool((slope[0] != 0).any())

    return _stacked(layer, sizes, first, weights, connected, layer.torch)[1]


def _stacked(
    layer: Layer,
    sizes: Sizes,
    x: Any,
    weights: Sequence[Any],
    connected: Callable[[Any], bool],
    perform: Any = None,
) -> tuple[Any, int]:
    """Layer upon layer until the ends are connected: the output there, and how many it took."""
    for depth in range(MOST_LAYERS):
        x = (perform or layer.numpy)(*[x] * layer.sequences, *weights, layer.deeper(sizes, depth))
        if connected(x):
            return x, depth + 1
    raise RuntimeError(
        f"{layer.name}: {MOST_LAYERS} layers do not connect the ends of a sequence at {dict(sizes)}"
    )


def _inputs(layer: Layer, sizes: Sizes) -> list[np.ndarray]:
    return list(layer.inputs(sizes, np.random.default_rng(0)))


def _shape_of(options: dict[str, Any]) -> dict[str, Any]:
    """Of a reduction's options those that shape the result."""
    return {name: options[name] for name in ("axis", "keepdims") if name in options}
