"""Classes and layers that are no torch.nn.Module: each is refused in one sentence, with the way round."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

# Package -> how a layer of it is written as a function of query, key and value.
LIBRARIES: Mapping[str, str] = {
    "flax": "def attention(query, key, value): return layer.apply(variables, query, key, value)",
    "equinox": "def attention(query, key, value): return layer(query, key, value)",
    "haiku": "def attention(query, key, value): return transformed.apply(parameters, None, query, key, value)",
    "keras": "def attention(query, key, value): return layer(query, value, key)",
    "mlx": "def attention(query, key, value): return layer(query, key, value)",
    "tinygrad": "def attention(query, key, value): return layer(query, key, value)",
}


def refusal(value: Any, target: str) -> str | None:
    """Why a value is no target, and what to verify instead; None for what may be one."""
    cls = value if inspect.isclass(value) else type(value)
    roots = [str(base.__module__ or "").partition(".")[0] for base in cls.__mro__]
    library = next((root for root in roots if root in LIBRARIES), None)
    if library is not None and (inspect.isclass(value) or not inspect.isfunction(value)):
        what = "a class" if inspect.isclass(value) else "an instance of a class"
        way = LIBRARIES[library]
        return f"{target} is {what} of {library}, whose layers are not taken as they stand\n  verify a function: {way}"
    if inspect.isclass(value):
        return (
            f"{target} is a class, and no torch.nn.Module: what its constructor takes is not known\n"
            f"  verify an instance that can be called, or a function: "
            f"def attention(query, key, value): return {cls.__name__}(...)(query, key, value)"
        )
    return None
