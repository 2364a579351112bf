"""What is said of an operation: `contract/operations/` has one file for each, and `qkverify list operations` prints them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Operation:
    """`parameters` are required and come in this order; `options` are keyword parameters that laws put to use where a
    function has them (those of attention are `contract.OPTIONS`). Both map a name to its shape or meaning. `rules` are
    what else it is held to where that is not plain. `defaults` are the options whose value is a choice of the function where
    it is not given: what it may be, the usual one first. `probes` find out which one it is. `named` are words of which a
    function's name must hold one, where the names of its parameters could belong to anything; then `spellings` are other
    names of a parameter or an option."""

    computes: str
    parameters: Mapping[str, str]
    returns: str
    options: Mapping[str, str] = field(default_factory=dict)
    rules: tuple[str, ...] = ()
    defaults: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    differentiable: bool = True  # False where nothing is given that a gradient could belong to
    named: tuple[str, ...] = ()
    spellings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def word(value: Any) -> str:
    """A value of `defaults` as it is printed: yes, no, half, 1e-06."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
