"""A class or an instance of torch.nn.Module as a target, before anything of it was found out."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from qkverify import foreign_text
from qkverify.contract import adapters
from qkverify.contract.declaration import NAME, Implementation
from qkverify.contract.options import OPERATIONS
from qkverify.contract.signatures import _module_name
from qkverify.errors import UsageError

DTYPES = ("float64", "float32")  # the rounding of a whole module in half precision has no model here


OF_MODULES = ("weights", "sizes", "operation")  # the adapters of a module


@dataclass(frozen=True, eq=False)
class ModuleTarget:
    """What is verified: `module` is the class or the instance, the rest the user's words for what cannot be guessed."""

    module: Any
    sizes: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    operation: str | None = None
    of_function: Mapping[str, Any] = field(
        default_factory=dict
    )  # adapters of a module that is a function of its arguments

    @property
    def cls(self) -> type:
        cls: type = self.module if inspect.isclass(self.module) else type(self.module)
        return cls

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        raise TypeError(f"{self.cls.__name__} was not fitted to an operation")  # `probes.fitted` replaces it


def is_module(value: Any) -> bool:
    """Whether a value is a class or an instance of torch.nn.Module. Loads no torch: without it there is none."""
    torch = sys.modules.get("torch")
    base = getattr(getattr(torch, "nn", None), "Module", None)
    if base is None:
        return False
    return issubclass(value, base) if inspect.isclass(value) else isinstance(value, base)


def adapted(implementation: Implementation, words: Mapping[str, Any], name: str = "") -> Implementation:
    """A module with what was said of it beside what its file says. Raises UsageError; `name` is how an error calls it."""
    module, name = implementation.function, name or implementation.name
    if not isinstance(module, ModuleTarget):
        raise UsageError(
            f"{name} is an Implementation, which says all of itself: {', '.join(words)} cannot be said of it"
        )
    words = adapters.checked(words, name)
    fitted = ModuleTarget(
        module.module,
        {**module.sizes, **words.get("sizes", {})},
        {**module.weights, **words.get("weights", {})},
        words.get("operation", module.operation),
        {word: value for word, value in words.items() if word not in OF_MODULES},
    )
    return replace(described(fitted), adapters=words)


def described(target: ModuleTarget, name: str = "", file: str = "") -> Implementation:
    """The target as an implementation of an operation that is not known yet."""
    cls = target.cls
    home = sys.modules.get(cls.__module__)
    summary = (inspect.getdoc(cls) or "").strip().partition("\n")[0] if cls.__doc__ else ""
    return Implementation(
        name=foreign_text.shown_line(name or f"{_module_name(cls)}:{cls.__name__}", characters=NAME),
        function=target,
        operation=target.operation or "multi_head_attention",
        arrays="torch",
        dtypes=DTYPES,
        devices=("cpu",),
        summary=foreign_text.shown_line(summary),
        file=file or getattr(home, "__file__", "") or "",
    )


def module(
    cls: Any, *, sizes: Mapping[str, Any] | None = None, weights: Mapping[str, str] | None = None,
    operation: str | None = None,
) -> Implementation:  # fmt: skip
    """A class or an instance of torch.nn.Module as a target, with words for what its names do not say.

    - `sizes`: argument of the constructor, or field of its configuration -> a value that is passed on, or what it is: "width",
      "heads", "head_size", "inner", "length", "vocabulary". Of an instance: "heads" -> their number.
    - `weights`: parameter -> "q", "k", "v", "o" or several of them in their order, such as "qkv"; after that, if need be,
      "head by head", "(in,out)" or "(out,in)"; "zero", "one" or "keep" for a parameter that is none of them
    - `operation`: what it computes, where its parameters do not show that

    Assigned to a name in a file, `mine.py:name` is a target. Raises UsageError for anything else than a module.
    """
    if not is_module(cls):
        shown = foreign_text.shown_line(cls if inspect.isclass(cls) else type(cls).__name__, characters=80)
        raise UsageError(f"qkverify.module takes a class or an instance of torch.nn.Module, not {shown}")
    if operation is not None and operation not in OPERATIONS:
        raise UsageError.unknown("operation", operation, OPERATIONS)
    return described(ModuleTarget(cls, dict(sizes or {}), dict(weights or {}), operation))
