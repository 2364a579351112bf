"""The axes of query, key, value and output as a function takes them, and as the contract has them: (B,H,L,D).

Each layout is two expressions, to the function's axes and back to the contract's, which an array of any framework understands:
code evaluates them and scripts show them. Without a batch or without heads, those axes have length one.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

LAYOUTS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "BHLD": ("", ""),
        "BLHD": (".swapaxes(1, 2)", ".swapaxes(1, 2)"),
        "LBHD": (".swapaxes(1, 2).swapaxes(0, 1)", ".swapaxes(0, 1).swapaxes(1, 2)"),
        "BLD": ("[:, 0]", "[:, None]"),
        "LBD": ("[:, 0].swapaxes(0, 1)", ".swapaxes(0, 1)[:, None]"),
        "LD": ("[0, 0]", "[None, None]"),
    }
)
# The sizes that a layout leaves no choice of.
SIZES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "BHLD": (),
        "BLHD": (),
        "LBHD": (),
        "BLD": ("H == 1", "G == 1"),
        "LBD": ("H == 1", "G == 1"),
        "LD": ("B == 1", "H == 1", "G == 1"),
    }
)
WORDS: Mapping[str, str] = MappingProxyType(
    {
        "BHLD": "(B,H,L,D)",
        "BLHD": "(B,L,H,D)",
        "LBHD": "(L,B,H,D)",
        "BLD": "(B,L,D)",
        "LBD": "(L,B,D)",
        "LD": "(L,D)",
    }
)


def to_function(array: Any, layout: str) -> Any:
    """An array (B,H,...) in the axes of a function."""
    return _TO[layout](array)


def to_contract(array: Any, layout: str) -> Any:
    """An array of a function's axes as (B,H,...)."""
    return _BACK[layout](array)


def option_to_function(array: Any, layout: str) -> Any:
    """A mask or bias that broadcasts to (B,H,Q,K), for a function whose scores have fewer axes."""
    kept = {"BLD": 3, "LBD": 3, "LD": 2}.get(layout, 4)
    if array.ndim <= kept:
        return array
    return array[:, 0] if (kept, array.ndim) == (3, 4) else array.reshape(array.shape[-kept:])


_TO = {name: eval(f"lambda array: array{to}") for name, (to, _) in LAYOUTS.items()}
_BACK = {name: eval(f"lambda array: array{back}") for name, (_, back) in LAYOUTS.items()}
