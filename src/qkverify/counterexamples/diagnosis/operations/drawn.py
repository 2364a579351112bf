"""Random examples of another operation, drawn as its laws draw them: what a mistake was found on is not what it is tested on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from qkverify.counterexamples.diagnosis.operations.decoding import told as told_of_decoding
from qkverify.counterexamples.diagnosis.operations.kind import BASE, Example, rounded
from qkverify.problem import byte_strategies
from qkverify.runs.run import Run
from qkverify.strategies.operation_cases import OperationCall, calls, example

DECODING = ("packed_attention", "cached_attention", "paged_attention")
LAYERS = ("encoder_layer", "decoder_layer")
ASKED = ("dtype", "device", "longest_query", "longest_key")  # of the function, and not of the reference


def drawn(run: Run, generator: np.random.Generator) -> Iterator[Example]:
    """Examples without end, of the sizes, options and numbers that the laws about calls draw."""
    strategy = calls()
    while True:
        with run.activated():
            chosen = byte_strategies.sampled(strategy, generator)
        if chosen is not None:
            yield as_example(run, example(run, chosen))


def as_example(run: Run, call: OperationCall) -> Example:
    """A call as the diagnosis takes it."""
    name, given = run.implementation.operation, call.arguments
    shapes = [part.value.shape for part in call.exact(run)]
    parts = call.form.parts
    shape: Any = dict(zip(parts, shapes, strict=True)) if parts else shapes[0]
    options = {n: x for n, x in call.options.items() if n not in ASKED}
    call_only: dict[str, Any] = {}
    if name == "positional_encoding":
        call_only = {"dtype": run.dtype, "device": run.device}
    if name == "packed_attention":
        longest = (int(np.diff(given[starts]).max()) for starts in ("query_starts", "key_starts"))
        call_only = dict(zip(("longest_query", "longest_key"), longest, strict=True))
    return Example(tuple(given.values()), options, shape, _told(run, call), call_only, _judged(call, shape))


def _told(run: Run, call: OperationCall) -> dict[str, Any]:
    """What the computations of the operation are given beside its arguments."""
    name, given = run.implementation.operation, call.arguments
    if name in ("rotary", "rotary_pair", "positional_encoding"):
        return dict(BASE)
    if name == "alibi_slopes":
        return {"precision": run.precision}
    if name == "embedding":
        return {**BASE, "scale": rounded(run, given["table"].shape[1] ** 0.5)}
    if name == "multi_head_attention":
        return {"causal_alignment": "bottom-right"}
    if name in LAYERS:
        return {"scale": rounded(run, (given["x"].shape[2] // call.options["heads"]) ** -0.5)}
    if name in DECODING:
        keys = given["key_pages" if name == "paged_attention" else "key"]
        heads = (given["query"].shape[1], keys.shape[1 if name != "paged_attention" else 2])
        return {**told_of_decoding(run), "grouped": heads[0] != heads[1]}
    return {}


def _judged(call: OperationCall, shape: Any) -> Any:
    """Where a result counts: not in the padding."""
    if "padding" in call.options or "key_lengths" in call.options:
        at = np.arange(shape[1])
        starts = call.options.get("padding")
        kept = at < call.options["key_lengths"][:, None] if starts is None else at >= starts[:, None]
        return np.broadcast_to(kept[..., None], shape)
    return None
