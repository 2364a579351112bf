"""Calls under which nothing of qkverify lies on the stack, as a user's own call looks.

A function that is right where it finds qkverify among its callers, and wrong elsewhere, is asked like this. A new thread begins
with an empty stack; what it runs is compiled under a name that says nothing. Python shows the stacks of other threads too, so who
looks further still finds us.
"""

from __future__ import annotations

import _thread
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

_SOURCE = """
def main(function, arguments, keywords, context, result, done):
    try:
        with context():
            result.append((function(*arguments, **keywords), None))
    except BaseException as error:
        result.append((None, error))
    finally:
        done.release()
"""
_names: dict[str, Any] = {}
exec(compile(_SOURCE, "<stdin>", "exec"), _names)


def bare(function: Callable[..., Any], context: Callable[[], AbstractContextManager[Any]]) -> Callable[..., Any]:  # fmt: skip
    """The function, called in a thread of its own, within a context; it returns and raises what the function does."""

    @functools.wraps(function)
    def called(*arguments: Any, **keywords: Any) -> Any:
        result: list[tuple[Any, BaseException | None]] = []
        done = _thread.allocate_lock()
        done.acquire()
        _thread.start_new_thread(_names["main"], (function, arguments, keywords, context, result, done))
        done.acquire()
        returned, error = result[0]
        if error is not None:
            raise error
        return returned

    return called
