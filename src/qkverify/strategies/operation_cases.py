"""One call of any operation but attention, as data: how an example is drawn, and what it should return.

    call = example(run, drawn)         the arrays, numbers and keywords of one call; `drawn` are plain numbers from `calls()`
    held = PreparedCall(run, call)             the same on native arrays that stay: called again, overwritten, read back
    call.exact(run)                    what it should return, with the bounds of the run's precision

`OPERATION_SPECS` says for each operation what its sizes are drawn from, how its arguments follow from them, and which part of the
reference it is. A law that speaks of calls, and not of what is computed, is written once over all of them
(`properties/test_calls.py`). Sizes are small: whatever is kept between calls is kept for small arrays too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from qkverify.contract.operations import DESCRIBED
from qkverify.errors import HarnessError
from qkverify.problem.attention_problem import LAYOUTS, Problem
from qkverify.problem.byte_strategies import Choices, Recipe, limited, strategy
from qkverify.reference.caches import appended, gathered
from qkverify.reference.encoder_decoder import decoder_layer, encoder_layer
from qkverify.reference.layers import feed_forward
from qkverify.reference.multi_head import multi_head_attention
from qkverify.reference.softmax import softmax
from qkverify.rounding import EXACT, Bounded
from qkverify.runs import exact_losses, exact_positions
from qkverify.runs.accepted_heads import accepted
from qkverify.runs.run import Run, active

Array = np.ndarray
Given = dict[str, Any]  # arguments or keywords by name: arrays, numbers, words, mappings of arrays


class Source:
    """Where the numbers of one call come from. `turn` counts the calls of an example: same sizes, other numbers."""

    def __init__(self, dtype: Any, sizes: SimpleNamespace, turn: int) -> None:
        self.dtype, self.turn, self._whole = dtype, turn, sizes.fill == "whole"
        self._rng = np.random.default_rng([sizes.seed, turn])
        self._steady = np.random.default_rng(sizes.seed)

    def __call__(self, *shape: int, size: float = 1.0) -> Array:
        """Small whole numbers, or normal ones of this size."""
        whole = self._rng.integers(-2, 3, shape)
        values: Array = (whole if self._whole else self._rng.standard_normal(shape) * size).astype(self.dtype)
        return values

    def matrix(self, rows: int, columns: int) -> Array:
        """Weights that keep the size of what they are multiplied with."""
        return self(rows, columns, size=rows**-0.5)

    def integers(self, first: int, end: int, *shape: int, dtype: Any = np.int64) -> Array:
        return self._rng.integers(first, end, shape).astype(dtype)

    def steady(self, first: int, end: int, *shape: int) -> Array:
        """Integers that are the same in every turn."""
        return self._steady.integers(first, end, shape).astype(np.int32)


@dataclass(frozen=True)
class OperationSpec:
    """An operation: `sizes` and switches with their candidates, the simplest first; `draw` makes arguments and keywords of them.

    `exact(run, arguments, keywords)` is every part of the result. `written` are arguments that the operation is there to write.
    """

    sizes: Mapping[str, Sequence[Any]]
    draw: Callable[[SimpleNamespace, Source], tuple[Given, Given]]
    exact: Callable[[Run, Given, Given], tuple[Bounded, ...]]
    written: tuple[str, ...] = ()
    has_arrays: bool = True

    @property
    def differentiable(self) -> bool:
        """Whether gradients are asked of it: not of what takes no arrays, nor of what writes to them."""
        return self.has_arrays and not self.written


@dataclass(frozen=True, eq=False)
class OperationCall:
    """One call: `arguments` in the function's order, `options` by keyword, all NumPy, in the dtype under test."""

    form: OperationSpec
    arguments: Given
    options: Given

    @cached_property
    def arrays(self) -> dict[str, Array]:
        """Every array by its name; those of a mapping as "weights.w_q"."""
        by_name: dict[str, Array] = {}
        _each({**self.arguments, **self.options}, lambda name, x: by_name.setdefault(name, x))
        return {name: x for name, x in by_name.items() if isinstance(x, np.ndarray)}

    def but(self, changes: Mapping[str, Array]) -> OperationCall:
        """The same call with other arrays under some of their names."""
        swapped = (
            _each(part, lambda name, x: changes.get(name, x)) for part in (self.arguments, self.options)
        )
        return OperationCall(self.form, *swapped)

    def exact(self, run: Run) -> tuple[Bounded, ...]:
        """What it should return, part by part, with the bound of a right implementation."""
        return self.form.exact(run, self.arguments, run.meant(**self.options))


class PreparedCall:
    """A call on native arrays of its own, or on those `native` ones that are given; they stay the same objects."""

    def __init__(
        self,
        run: Run,
        call: OperationCall,
        layouts: Mapping[str, str] | None = None,
        native: Mapping[str, Any] | None = None,
    ) -> None:
        self.run, self.call, self.native = run, call, dict(native or {})

        def lent(name: str, x: Any) -> Any:
            if not isinstance(x, np.ndarray) or name in self.native:
                return self.native.get(name, x)
            placed = LAYOUTS[(layouts or {}).get(name, "contiguous")](x.copy())
            self.native[name] = run.framework.from_numpy(placed, run.device)
            return self.native[name]

        self.arguments, self.options = _each(call.arguments, lent), _each(call.options, lent)

    def __call__(self) -> tuple[Any, ...]:
        """The parts of the result as the function returned them, native, their shapes checked by `numbers`."""
        return self.parts(self.run.invoke(tuple(self.arguments.values()), self.options))

    def bare(self) -> Callable[[], Any]:
        """The function on these arguments as a call without any: for timing, with nothing of the harness inside."""
        return self.run.function_call(tuple(self.arguments.values()), self.options)

    def parts(self, returned: Any) -> tuple[Any, ...]:
        """The parts of the result, of what a function returned."""
        if not isinstance(returned, tuple):
            return (returned,)
        return returned[:1] if self.call.form.written else returned  # new caches may follow

    def results(self) -> list[Array]:
        """Called: each part of the result as NumPy."""
        return self.numbers(self())

    def numbers(self, returned: tuple[Any, ...]) -> list[Array]:
        """Copies of what was returned. Raises ContractError where the shapes are not those of the operation."""
        return self.run.parts(returned, [part.value.shape for part in self.call.exact(self.run)])

    def gradients(self, upstream: tuple[Any, ...]) -> list[Array] | None:
        """Both passes, for a native gradient from above for each part of the result.

        Returns the parts of the result as they were while gradients were recorded; None if the function has a vjp of its own.
        Raises UnsupportedCase for a function of servers whose result has no gradient at all.
        """
        framework, pull = self.run.framework, self.run.implementation.vjp
        if pull is not None:
            self.run.invoke((*self.arguments.values(), *upstream), self.options, function=pull)
            return None

        def function(**leaves: Any) -> Any:
            given = _each(self.arguments, lambda name, x: leaves.get(name, x))
            returned = self.run.invoke(tuple(given.values()), self.options)
            self.run.check_differentiated(returned)
            return self.parts(returned)

        floating = {name for name, x in self.call.arrays.items() if x.dtype.kind not in "iub"}
        leaves = {name: self.native[name] for name in floating if name not in self.call.form.written}
        return self.numbers(framework.vjp(function, leaves, upstream)[0])

    def now(self) -> OperationCall:
        """The call with what its arrays hold now."""
        return self.call.but({n: np.array(self.run.framework.to_numpy(x)) for n, x in self.native.items()})


def _each(values: Mapping[str, Any], change: Callable[[str, Any], Any], prefix: str = "") -> Given:
    """The same nesting with every leaf changed, which is called by its path."""
    return {
        name: _each(x, change, f"{prefix}{name}.") if isinstance(x, Mapping) else change(prefix + name, x)
        for name, x in values.items()
    }


def bounded(run: Run, values: Mapping[str, Any]) -> Given:
    """Arrays of the dtype under test as the reference takes them; integers and numbers stay as they are."""
    return _each(
        values, lambda _, x: run.bounded(x) if isinstance(x, np.ndarray) and x.dtype.kind not in "iu" else x
    )


def rounded(run: Run, number: float) -> Bounded:
    """A number that is no array: an implementation rounds it to its working precision."""
    return Bounded(number, np.asarray(abs(number) * run.precision.accumulate.unit), run.precision)


# -- each operation ------------------------------------------------------------------------------------------------------

BATCH, LENGTHS, HEADS = (1, 2, 3), (1, 2, 3, 5, 9), (1, 2, 3)
PAIRS = ("interleaved", "half")


def _softmax(s: SimpleNamespace, new: Source) -> tuple[Given, Given]:
    return {"scores": new(s.B, s.L, s.K)}, {}


def _multi_head(s: SimpleNamespace, new: Source) -> tuple[Given, Given]:
    width = s.H * s.D
    weights = {name: new.matrix(width, width) for name in ("w_q", "w_k", "w_v", "w_o")}
    return {"x": new(s.B, s.L, width), **weights}, {"heads": s.H, "causal": s.causal}


def _encoding(s: SimpleNamespace, new: Source) -> tuple[Given, Given]:
    return {"length": s.L, "dim": s.D}, {"layout": s.layout, "dtype": new.dtype.name}


def _rotary(s: SimpleNamespace, new: Source) -> tuple[Given, Given]:
    return {"x": new(s.B, s.H, s.L, s.D), "positions": new.integers(0, 99, s.L)}, {"layout": s.layout}


def _rotary_pair(s: SimpleNamespace, new: Source) -> tuple[Given, Given]:
    query, key = new(s.B, s.H * s.G, s.L, s.D), new(s.B, s.G, s.L, s.D)
    return {"query": query, "key": key, "positions": new.integers(0, 99, s.B, s.L)}, {"layout": s.layout}


def _rotary_pair_exact(run: Run, given: Given, options: Given) -> tuple[Bounded, ...]:
    at = given["positions"][:, None]
    return tuple(exact_positions.rotary(run, given[x], at, **options) for x in ("query", "key"))


def _embedding(s: SimpleNamespace, new: Source) -> tuple[Given, Given]:
    padding = {"padding": new.integers(0, s.L, s.B)} if s.padded else {}
    given = {"tokens": new.integers(0, s.V, s.B, s.L), "table": new(s.V, s.D)}
    return given, {"layout": s.layout, **padding}


def _feed_forward(s: SimpleNamespace, new: Source) -> tuple[Given, Given]:
    first, second = new.matrix(s.M, s.F), new.matrix(s.F, s.M)
    return {"x": new(s.B, s.L, s.M), "w_1": first, "b_1": new(s.F), "w_2": second, "b_2": new(s.M)}, {}


def layer_weights(
    width: int, inner: int, norms: int, matrix: Callable[..., Array], vector: Callable[..., Array]
) -> dict[str, Array]:
    """Of an encoder layer (two norms) or a decoder layer (three), each array made for its shape."""
    weights: dict[str, Array] = {}
    for prefix in ("", "cross_")[: norms - 1]:
        weights |= {prefix + name: matrix(width, width) for name in ("w_q", "w_k", "w_v", "w_o")}
    weights |= {
        "w_1": matrix(width, inner),
        "b_1": vector(inner),
        "w_2": matrix(inner, width),
        "b_2": vector(width),
    }
    for i in range(1, norms + 1):
        weights |= {f"gain_{i}": vector(width), f"shift_{i}": vector(width)}
    return weights


def _weights(s: SimpleNamespace, new: Source, norms: int) -> dict[str, Array]:
    return layer_weights(s.H * s.D, s.F, norms, new.matrix, new)


def _encoder(s: SimpleNamespace, new: Source) -> tuple[Given, Given]:
    lengths = {"key_lengths": new.integers(1, s.L + 1, s.B, dtype=np.int32)} if s.padded else {}
    given = {"x": new(s.B, s.L, s.H * s.D), "weights": _weights(s, new, 2)}
    return given, {"heads": s.H, "norm_first": s.norm_first, "eps": s.eps, **lengths}


def _decoder(s: SimpleNamespace, new: Source) -> tuple[Given, Given]:
    lengths = {"memory_lengths": new.integers(1, s.K + 1, s.B, dtype=np.int32)} if s.padded else {}
    width = s.H * s.D
    given = {"x": new(s.B, s.L, width), "memory": new(s.B, s.K, width), "weights": _weights(s, new, 3)}
    return given, {"heads": s.H, "norm_first": s.norm_first, "eps": s.eps, **lengths}


def _layer_exact(layer: Callable[..., Any]) -> Callable[[Run, Given, Given], tuple[Bounded, ...]]:
    def exact(run: Run, given: Given, options: Given) -> tuple[Bounded, ...]:
        size = given["x"].shape[2] // options["heads"]
        told = {**options, "eps": rounded(run, options["eps"]), "scale": rounded(run, size**-0.5)}
        return (layer(*bounded(run, given).values(), **told),)

    return exact


def _loss(s: SimpleNamespace, new: Source) -> tuple[Given, Given]:
    return {"scores": new(s.L, s.K), "targets": new.integers(0, s.K, s.L)}, {"smoothing": s.smoothing}


def _attended(run: Run, options: Given, *rows: tuple[Array, Array, Array]) -> list[Bounded]:
    """Attention of each sequence, given as query (H,Q,D), key (G,K,D) and value (G,K,E), as (H,Q,E)."""
    outputs = []
    for query, key, value in rows:
        given: Given = {"query": query[None], "key": key[None], "value": value[None], **options}
        run.problems.append(Problem(**given, causal_alignment=run.semantics["causal_alignment"]))
        outputs.append(run.bound(run.problems[-1])[0])
    return [Bounded(output.value[0], output.errors[0], EXACT) for output in outputs]


def _joined(parts: Sequence[Bounded], join: Callable[[list[Array]], Array]) -> tuple[Bounded, ...]:
    return (Bounded(join([x.value for x in parts]), join([x.errors for x in parts]), EXACT),)


def _packed(s: SimpleNamespace, new: Source) -> tuple[Given, Given]:
    """As many rows in every turn, cut elsewhere."""
    rows, keys = s.B * s.L, s.B * s.K
    cuts = [np.sort(new.integers(0, n + 1, s.B - 1)) for n in (rows, keys)]
    starts = [np.array([0, *cut, n], np.int32) for cut, n in zip(cuts, (rows, keys), strict=True)]
    arrays = {"query": new(rows, s.G * s.H, s.D), "key": new(keys, s.G, s.D), "value": new(keys, s.G, s.E)}
    given = {**arrays, "query_starts": starts[0], "key_starts": starts[1]}
    return given, {"causal": s.causal, "scale": s.scale}


def _packed_exact(run: Run, given: Given, options: Given) -> tuple[Bounded, ...]:
    q, k, v = (given[name].swapaxes(0, 1) for name in ("query", "key", "value"))
    bounds = zip(pairwise(given["query_starts"]), pairwise(given["key_starts"]), strict=True)
    rows = [(q[:, a:b], k[:, c:d], v[:, c:d]) for (a, b), (c, d) in bounds]
    outputs = _attended(run, options, *rows)
    return _joined([x.swapaxes(0, 1) for x in outputs], np.concatenate)


def _cached(s: SimpleNamespace, new: Source) -> tuple[Given, Given]:
    """The lengths go on from turn to turn, as they do when a sequence is decoded."""
    arrays = {
        "query": new(s.B, s.G * s.H, s.L, s.D),
        "key": new(s.B, s.G, s.L, s.D),
        "value": new(s.B, s.G, s.L, s.E),
    }
    room = 5 + 3 * s.L
    caches = {"key_cache": new(s.B, s.G, room, s.D), "value_cache": new(s.B, s.G, room, s.E)}
    lengths = new.steady(0, 5, s.B) + np.int32(new.turn * s.L)
    return {**arrays, **caches, "lengths": lengths}, {"scale": s.scale}


def _cached_exact(run: Run, given: Given, options: Given) -> tuple[Bounded, ...]:
    keys, values = (appended(given[f"{x}_cache"], given[x], given["lengths"]) for x in ("key", "value"))
    return _last_tokens(run, given["query"], keys, values, options)


def _paged(s: SimpleNamespace, new: Source) -> tuple[Given, Given]:
    """Any page for any place: sequences may share one."""
    pools = {"key_pages": new(s.B + 2, s.P, s.G, s.D), "value_pages": new(s.B + 2, s.P, s.G, s.E)}
    width = -(-(s.L + 4) // s.P)
    table = new.integers(0, s.B + 2, s.B, width, dtype=np.int32)
    lengths = new.integers(s.L, width * s.P + 1, s.B, dtype=np.int32)
    query = new(s.B, s.G * s.H, s.L, s.D)
    return {"query": query, **pools, "page_table": table, "lengths": lengths}, {"scale": s.scale}


def _paged_exact(run: Run, given: Given, options: Given) -> tuple[Bounded, ...]:
    where = given["page_table"], given["lengths"]
    keys, values = (gathered(given[x], *where) for x in ("key_pages", "value_pages"))
    return _last_tokens(run, given["query"], keys, values, options)


def _last_tokens(
    run: Run, query: Array, keys: list[Array], values: list[Array], options: Given
) -> tuple[Bounded, ...]:
    """Attention of each entry's queries, its last tokens, to its own keys (1,G,n,D) and values (1,G,n,E)."""
    rows = ((q, k[0], v[0]) for q, k, v in zip(query, keys, values, strict=True))
    return _joined(_attended(run, {**options, "causal": True}, *rows), np.stack)


ROWS: Mapping[str, Sequence[Any]] = {"B": BATCH, "L": LENGTHS}
EVEN = (2, 4, 6, 16)
SERVING: Mapping[str, Sequence[Any]] = {
    **ROWS, "G": (1, 2), "H": (1, 2), "D": (1, 2, 4), "E": (1, 2, 3), "scale": (None, 0.5)}  # fmt: skip
LAYER: Mapping[str, Sequence[Any]] = {
    **ROWS, "H": (2, 1, 3), "D": (1, 2, 3), "F": (1, 2, 5), "norm_first": (False, True), "eps": (1e-5, 1e-2, 1.0),
    "padded": (False, True)}  # fmt: skip

OPERATION_SPECS: Mapping[str, OperationSpec] = {
    "softmax": OperationSpec({**ROWS, "K": (1, 2, 3, 5, 17, 65)}, _softmax,
                    lambda run, given, options: (+softmax(run.bounded(given["scores"])),)),
    "multi_head_attention": OperationSpec({**ROWS, "H": HEADS, "D": (1, 2, 3, 8), "causal": (False, True)}, _multi_head,
                                 lambda run, given, options: (multi_head_attention(
                                     *bounded(run, given).values(), causal_alignment="bottom-right", **options),)),
    "positional_encoding": OperationSpec({"L": (1, 2, 5, 33), "D": EVEN, "layout": ("interleaved", "concatenated")}, _encoding,
                                lambda run, given, options: (exact_positions.positional_encoding(
                                    run, **given, layout=options["layout"]),),
                                has_arrays=False),
    "rotary": OperationSpec({**ROWS, "H": HEADS, "D": EVEN, "layout": PAIRS}, _rotary,
                   lambda run, given, options: (exact_positions.rotary(run, **given, **options),)),
    "rotary_pair": OperationSpec({**ROWS, "G": (1, 2), "H": (1, 2), "D": EVEN, "layout": PAIRS}, _rotary_pair,
                                 _rotary_pair_exact),
    "embedding": OperationSpec({**ROWS, "D": EVEN, "V": (2, 5, 11), "layout": ("interleaved", "concatenated"),
                       "padded": (False, True)}, _embedding,
                      lambda run, given, options: (exact_positions.embedding(run, **given, **options),)),
    "alibi_slopes": OperationSpec({"H": (1, 2, 3, 8, 12)}, lambda s, new: ({"heads": s.H}, {}),
                         lambda run, given, options: (exact_positions.slopes(run, **given),), has_arrays=False),
    "packed_attention": OperationSpec({**SERVING, "K": LENGTHS, "causal": (False, True)}, _packed, _packed_exact),
    "cached_attention": OperationSpec(SERVING, _cached, _cached_exact, written=("key_cache", "value_cache")),
    "paged_attention": OperationSpec({**SERVING, "P": (1, 2, 4)}, _paged, _paged_exact),
    "feed_forward": OperationSpec({**ROWS, "M": (1, 2, 3, 8), "F": (1, 2, 5, 16)}, _feed_forward,
                         lambda run, given, options: (feed_forward(*bounded(run, given).values()),)),
    "encoder_layer": OperationSpec(LAYER, _encoder, _layer_exact(encoder_layer)),
    "decoder_layer": OperationSpec({**LAYER, "K": LENGTHS}, _decoder, _layer_exact(decoder_layer)),
    "cross_entropy": OperationSpec({"L": LENGTHS, "K": (2, 3, 5, 17), "smoothing": (0.0, 0.1, 1.0)}, _loss,
                          lambda run, given, options: (exact_losses.cross_entropy(run, **given, **options),)),
}  # fmt: skip

FILL: Mapping[str, Sequence[Any]] = {"fill": ("whole", "normal", "normal"), "seed": range(1000)}
BARE: Mapping[str, Sequence[Any]] = {
    "bare": (False, False, True)
}  # whether every keyword is left out that can be
PLACES = {
    str(i): 3 for i in range(max(len({**form.sizes, **FILL, **BARE}) for form in OPERATION_SPECS.values()))
}


def calls() -> st.SearchStrategy[dict[str, Any]]:
    """The sizes, switches and seed of a call of the operation that is checked: plain numbers, which a replay file can hold."""

    def make(choices: Choices) -> dict[str, Any]:
        run = active()
        if run is None:
            raise HarnessError("calls are drawn for an operation: while a run is checked")
        pools = {**FILL, **OPERATION_SPECS[run.implementation.operation].sizes, **BARE}
        if run.implementation.operation == "alibi_slopes":
            pools["H"] = [n for n in pools["H"] if accepted(run, n)]
        return {
            name: choices.pick(str(i), limited(name, pool)) for i, (name, pool) in enumerate(pools.items())
        }

    return strategy(Recipe(PLACES, make))


def example(run: Run, drawn: Mapping[str, Any], turn: int = 0) -> OperationCall:
    """The call that was drawn; in another `turn` one of the same sizes with other numbers.

    Keywords that the function does not take are left out; the reference is told what it means without them.
    """
    operation = run.implementation.operation
    form, described = OPERATION_SPECS[operation], DESCRIBED[operation].options
    sizes = SimpleNamespace(**drawn)
    arguments, options = form.draw(sizes, Source(np.dtype(run.numpy_dtype), sizes, turn))
    # The dtype of an encoding is that of the cell. Whether causal is on by default is no choice: it is passed, either way.
    needed = ("dtype", "causal")
    kept = {n: x for n, x in options.items() if described.get(n) == "required" or n in needed}
    return OperationCall(form, arguments, run.given(**(kept if drawn.get("bare") else options)))
