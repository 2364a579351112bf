"""Array frameworks, one file each, imported when an implementation needs one.

Every file gives the same names: `unavailable(device)` (None, or the reason), `from_numpy(array, device)` (strides kept),
`to_numpy(native)`, `filled(shape, number, like)` (of one number, with
the dtype and device of `like`), `concatenated(arrays)`, `dtype_of(native)`, `shape_of`, `vjp(function, inputs, upstream)`,
`backward(function, inputs, upstream)` (forward now, a call for the rest), `overwrite(native, array)` (in place; False where
it cannot be), `inference()` (a context without gradients), `global_state()`,
`restored()` (a context that undoes changed settings) and `stir()` (of generators), `synchronise(device)`, `lost(device)` (what
the device says where it answers this process no more, else None) and `REFUSALS` (exceptions by which the framework says "not
offered").
"""

from __future__ import annotations

import importlib
from typing import Any

from qkverify.errors import UsageError

FILES = {"numpy": "numpy_arrays", "torch": "torch_arrays", "jax": "jax_arrays"}


def get(name: str) -> Any:
    """The framework called "numpy", "torch" or "jax". Raises UsageError when it is not installed."""
    if name not in FILES:
        raise UsageError.unknown("framework", name, FILES)
    try:
        return importlib.import_module(f"qkverify.contract.frameworks.{FILES[name]}")
    except ImportError as error:
        raise UsageError(f"{name} is not installed ({error}): pip install {name}") from error


def missing(name: str) -> str | None:
    """None where the framework can be imported, else the reason."""
    try:
        get(name)
    except UsageError as error:
        return str(error)
    return None
