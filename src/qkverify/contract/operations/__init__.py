"""The operations that a function may compute, one file each: what stands first in its signature, what comes back, what it means.

A file's name is the operation's; `OPERATION` and `ORDER` in it are all that makes a new one known here. What other rooms know of
an operation stands in packages of their own, in files of the same names: `in_each` finds it.

Letters: B batch, H query heads, G key/value heads, Q queries, K keys, L tokens, D key size, E value size, M width of the
model, F inner width; T and S the query and key rows of all sequences together. `qkverify list operations` prints this.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType, ModuleType
from typing import Any

from qkverify.contract.operation import Operation, word

__all__ = ["DESCRIBED", "Operation", "in_each", "word"]


def _modules(package: str) -> dict[str, ModuleType]:
    names = [m.name for m in pkgutil.iter_modules(importlib.import_module(package).__path__)]
    return {name: importlib.import_module(f"{package}.{name}") for name in names}


def _described() -> Mapping[str, Operation]:
    files = sorted(_modules(__name__).items(), key=lambda named: named[1].ORDER)
    return MappingProxyType({name: module.OPERATION for name, module in files})


DESCRIBED: Mapping[str, Operation] = _described()


def in_each(package: str, attribute: str) -> dict[str, Any]:
    """What the files of a package that are named after operations call `attribute`, by operation, in the order of `DESCRIBED`."""
    modules = _modules(package)
    return {name: getattr(modules[name], attribute) for name in DESCRIBED if name in modules}
