"""Whether a function runs in Triton's interpreter, which computes kernels in Python and is no place for threads.

With TRITON_INTERPRET=1 `triton.jit` gives an `InterpretedFunction`, which patches `triton.language` while it runs: two calls
in two threads undo one another's patches, whatever the kernel does. Such objects are looked for in what the function's code
reaches: names of its module and of modules that it speaks of, closures, classes, wrapped and partial functions, and the
functions that these call. What a function reaches only by a name that it computes is not found.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

INTERPRETER = "triton.runtime.interpreter"
MOST = 5000  # objects that are looked at
LIBRARIES = {
    "torch",
    "numpy",
    "triton",
    "jax",
    "jaxlib",
    "qkverify",
    *sys.stdlib_module_names,
}  # not followed
REASON = "runs in Triton's interpreter, which is not made for threads"


def interpreted(function: Callable[..., Any]) -> bool:
    """Whether the function's code reaches a kernel of Triton's interpreter."""
    interpreter = sys.modules.get(INTERPRETER)
    if interpreter is None:
        return False
    kernel = interpreter.InterpretedFunction
    visited: set[int] = set()
    waiting: list[Any] = [function]
    while waiting and len(visited) < MOST:
        value = waiting.pop()
        if isinstance(value, kernel):
            return True
        if id(value) not in visited:
            visited.add(id(value))
            waiting += _reached(value)
    return False


def _reached(value: Any) -> Iterator[Any]:
    """What a function, class or object leads to."""
    if inspect.ismodule(value) or _is_of_a_library(value):
        return
    for name in (
        "__wrapped__",
        "__func__",
        "__self__",
        "func",
        "fn",
        "forward",
    ):  # `fn` of triton's autotuner
        yield from _attribute(value, name)
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list | tuple | set):
        yield from value
    elif inspect.isfunction(value):
        yield from _named(value)
    elif inspect.isclass(value):
        yield from vars(value).values()
    elif not isinstance(value, str | bytes | int | float | complex | None):
        yield type(value)
        yield from (getattr(value, "__dict__", None) or {}).values()


def _named(function: Any) -> Iterator[Any]:
    """What the names in a function's code stand for: in its module, in its closure, and in modules that it speaks of."""
    names = set(_names(function.__code__))
    referents = [function.__globals__[name] for name in names if name in function.__globals__]
    for cell in function.__closure__ or ():
        try:
            referents.append(cell.cell_contents)
        except ValueError:  # not filled yet
            continue
    yield from referents
    imported = [sys.modules[name] for name in names if name in sys.modules]  # inside of the function
    for module in [value for value in (*referents, *imported) if inspect.ismodule(value)]:
        if module.__name__.partition(".")[0] not in LIBRARIES:
            yield from (vars(module)[name] for name in names if name in vars(module))


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _attribute(value: Any, name: str) -> Iterator[Any]:
    try:
        yield getattr(value, name)
    except Exception:  # whatever an object of somebody else's raises
        return


def _is_of_a_library(value: Any) -> bool:
    """Whether it is a function or class of a library. Its instances are followed: Triton's tuners hold a kernel."""
    if not (inspect.isfunction(value) or inspect.isclass(value)):
        return False
    return str(getattr(value, "__module__", None)).partition(".")[0] in LIBRARIES
