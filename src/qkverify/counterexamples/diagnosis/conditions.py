"""Where a mistake shows: conditions on a problem, each with its opposite, in the words of a sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from qkverify.counterexamples.diagnosis.mistakes.variants import TILES
from qkverify.problem.attention_problem import Problem

Condition = tuple[str, Callable[[Any], bool]]  # "with causal": completes "..., the result equals ..."


def _uses(name: str) -> Callable[[Problem], bool]:
    return lambda p: name in p.options


CONDITIONS: tuple[Condition, ...] = (
    ("with causality", _uses("causal")),
    ("with a mask", _uses("mask")),
    ("with a bias", _uses("bias")),
    ("with a window", _uses("window")),
    ("with key lengths", _uses("key_lengths")),
    ("with a softcap", _uses("softcap")),
    ("with ALiBi", _uses("alibi_slopes")),
    ("with sinks", _uses("sinks")),
    ("with a given scale", _uses("scale")),
    ("where nothing else hides keys", lambda p: not {"mask", "causal", "key_lengths"} & p.options.keys()),
    ("with one query", lambda p: p.sizes["Q"] == 1),
    ("with one batch entry", lambda p: p.sizes["B"] == 1),
    ("with as many queries as keys", lambda p: p.sizes["Q"] == p.sizes["K"]),
    ("with grouped heads", lambda p: p.group > 1),
    ("with values of another size than the keys", lambda p: p.sizes["D"] != p.sizes["E"]),
    *((f"with a number of keys that is a multiple of {t}", lambda p, t=t: p.sizes["K"] % t == 0) for t in TILES),
)  # fmt: skip


OPPOSITES: Mapping[str, str] = {
    "where nothing else hides keys": "where something else hides keys too",
    "with a given scale": "with the default scale",
    "with one query": "with several queries",
    "with one batch entry": "with several batch entries",
    "with as many queries as keys": "with another number of queries than keys",
    "with values of another size than the keys": "with values of the size of the keys",
    "with one position": "with several positions",
    "with one sequence": "with several sequences",
    "with one token": "with several tokens",
    "with one new token": "with several new tokens",
    "with one new token and room for another": "with several new tokens or a full cache",
    "in the layout of halves": "in the layout of neighbours",
    "with the norm first": "with the norm last",
    "with as many queries as keys in each sequence": "with another number of queries than keys in a sequence",
    "with sequences of one length but for the last": "with sequences of several lengths before the last",
    "with equal lengths": "with different lengths",
}


def either_way(conditions: Sequence[Condition]) -> Iterator[Condition]:
    """Each condition, then its opposite."""
    for phrase, holds in conditions:
        yield phrase, holds
        opposite = phrase.replace("with ", "without ", 1) if "a number" not in phrase else ""
        yield OPPOSITES.get(phrase, opposite or phrase.replace("that is a", "that is no")), _negated(holds)


def _negated(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda subject: not holds(subject)
