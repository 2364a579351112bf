"""The reference keeps to few operations, so that duck arrays pass through, and stays short enough to read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib.mixins import NDArrayOperatorsMixin

from qkverify import reference

ALLOWED = {
    "add", "subtract", "multiply", "divide", "power", "negative", "matmul", "copy", "positive", "absolute",
    "exp", "heaviside", "log", "tanh", "sin", "cos", "sqrt", "isfinite", "greater", "less", "greater_equal", "less_equal",
    "max", "maximum", "sum", "where", "swapaxes", "reshape", "repeat", "concatenate", "stack", "broadcast_to", "getitem",
}  # fmt: skip
KEYWORDS = {
    "sum": {"axis", "keepdims"},
    "max": {"axis", "keepdims", "initial"},
    "stack": {"axis"},
    "repeat": {"axis"},
}


class Recorder(NDArrayOperatorsMixin):
    """An array that writes down what is done to it and lets nothing else touch its numbers."""

    used: set[str]

    def __init__(self, array: Any, used: set[str]) -> None:
        self.array, self.used = array, used
        self.shape, self.ndim = np.shape(array), np.ndim(array)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("a duck array was turned into a plain one")

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **keywords: Any) -> Any:
        assert method == "__call__"
        return self._note(ufunc, inputs, keywords)

    def __array_function__(self, function: Any, types: Any, inputs: Any, keywords: Any) -> Any:
        return self._note(function, inputs, keywords)

    def __getitem__(self, index: Any) -> Recorder:
        self.used.add("getitem")
        return Recorder(self.array[index], self.used)

    def _note(self, function: Any, inputs: Any, keywords: Any) -> Any:
        name = function.__name__
        self.used.add({"amax": "max"}.get(name, name))
        assert keywords.keys() <= KEYWORDS.get(name, {"axis"}), f"{name} with {sorted(keywords)}"
        result = function(*(plain(x) for x in inputs), **keywords)
        return result if np.asarray(result).dtype == np.bool_ else Recorder(result, self.used)


def plain(x: Any) -> Any:
    if isinstance(x, list | tuple):
        return [plain(y) for y in x]
    return x.array if isinstance(x, Recorder) else x


def calls(ones: Any) -> Iterator[Any]:
    """One call of every function of the reference that takes arrays, options all on."""
    options = {
        "mask": np.ones((3, 4), dtype=bool), "bias": ones(2, 3, 4), "causal": True, "window": (2, 1),
        "softcap": 2.0, "alibi_slopes": ones(2), "key_lengths": np.array([3]), "sinks": ones(2),
    }  # fmt: skip
    inputs = ones(1, 2, 3, 4), ones(1, 1, 4, 4), ones(1, 1, 4, 2)
    upstreams = {"upstream": ones(1, 2, 3, 2), "lse_upstream": ones(1, 2, 3)}
    yield from reference.attention(*inputs, **options, return_lse=True)
    yield reference.attention(*inputs, empty_rows="uniform")
    for delta in ("weights", "output"):
        yield from reference.attention_vjp(
            *inputs, **upstreams, **options, delta=delta, empty_rows="uniform"
        ).values()
    steps = {name: x for name, x in options.items() if name != "sinks"}
    for divided in ("weights", "output"):
        yield from reference.attention_vjp_in_steps(
            *inputs, upstreams["upstream"], **steps, divided=divided
        ).values()
    yield reference.softmax_jacobian(reference.softmax(ones(2, 3)))
    yield reference.softmax_vjp(ones(2, 3), ones(2, 3))
    w = ones(4, 4)
    yield reference.multi_head_attention(ones(1, 3, 4), w, w, w, w, heads=2, context=ones(1, 5, 4))
    yield reference.positional_encoding(3, 4, base=ones()[()], start=ones()[()])
    yield reference.rotary(ones(1, 2, 3, 4), ones(3), layout="half")
    vector = {f"{name}_{i}": ones(4) for name in ("gain", "shift") for i in (1, 2, 3)}
    inner = {"w_1": ones(4, 5), "b_1": ones(5), "w_2": ones(5, 4), "b_2": ones(4)}
    layer = {f"{prefix}w_{name}": w for prefix in ("", "cross_") for name in "qkvo"} | inner | vector
    yield reference.encoder_layer(ones(1, 3, 4), layer, heads=2, key_lengths=np.array([2]))
    yield reference.decoder_layer(ones(1, 3, 4), ones(1, 5, 4), layer, heads=2, norm_first=True)
    yield reference.cross_entropy(ones(3, 4), np.arange(3), smoothing=0.1)
    yield reference.cross_entropy_vjp(ones(3, 4), np.arange(3), ones(3), smoothing=0.1)
    yield reference.from_embeddings(ones(1, 3, 4))
    yield reference.from_queries_keys_and_values(ones(1, 3, 4), w, w, w)


def test_a_duck_array_passes_through_by_the_listed_operations_only() -> None:
    used: set[str] = set()
    results = list(calls(lambda *shape: Recorder(np.ones(shape), used)))
    assert used <= ALLOWED
    assert all(isinstance(result, Recorder) for result in results)
    for duck, array in zip(results, calls(lambda *shape: np.ones(shape)), strict=True):
        assert (duck.array == array).all()


@pytest.mark.parametrize(
    "file", sorted(Path(reference.__file__).parent.glob("*.py")), ids=lambda file: file.name
)
def test_a_file_of_the_reference_is_shorter_than_sixty_lines(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) < 60


def test_inputs_are_not_written_to() -> None:
    def frozen(*shape: int) -> Any:
        array = np.random.default_rng(0).normal(size=shape)
        array.flags.writeable = False
        return array

    assert len(list(calls(frozen))) > 0
