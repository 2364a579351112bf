"""The types of layers, one file each: `LAYERS` and `ORDER` in it are all that makes a new one known."""

from __future__ import annotations

import importlib
import pkgutil
from functools import lru_cache

from qkverify.errors import UsageError
from qkverify.timing.complexity.layer import Layer


@lru_cache(maxsize=1)
def all_layers() -> tuple[Layer, ...]:
    """Every layer, in the order of the files' `ORDER`."""
    modules = [
        importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)
    ]
    return tuple(layer for module in sorted(modules, key=lambda m: m.ORDER) for layer in module.LAYERS)


def layer(name: str) -> Layer:
    """The layer of that name. Raises UsageError where there is none."""
    known = {layer.name: layer for layer in all_layers()}
    if name not in known:
        raise UsageError.unknown("layer", name, known)
    return known[name]
