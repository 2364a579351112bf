"""Settings of the process that a call must leave as they were, and a record of those that one did not.

`restored` puts back what was changed inside it, so that what comes next is not judged by it, and notes it for `taken`: from
what to what. A change of the environment or of the import path while a module was imported is the module's, and stays.
"""

from __future__ import annotations

import contextlib
import decimal
import locale
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qkverify import foreign_text

ABSENT = "unset"
_HANDLED = ("SIGINT", "SIGTERM", "SIGALRM", "SIGSEGV", "SIGABRT", "SIGFPE", "SIGCHLD")
_DECIMAL = ("prec", "rounding", "Emin", "Emax", "capitals", "clamp")


@dataclass(frozen=True)
class Setting:
    """One setting: its name, what reads it and what writes it. `by_modules`: importing a module may change it."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], Any]
    by_modules: bool = False


def _folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return ABSENT


def _enter(folder: str) -> None:
    with contextlib.suppress(OSError):
        os.chdir(folder)


def _set_environment(variables: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)


def _set_handlers(handlers: Mapping[str, Any]) -> None:
    for name, handler in handlers.items():
        with contextlib.suppress(ValueError, TypeError):  # not in this thread, or not set by Python
            if signal.getsignal(getattr(signal, name)) != handler:
                signal.signal(getattr(signal, name), handler)


def _set_decimal(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        setattr(decimal.getcontext(), name, value)


def _set_path(path: Sequence[str]) -> None:
    sys.path[:] = path


OF_PYTHON: tuple[Setting, ...] = (
    Setting("the working folder", _folder, _enter),
    Setting("the environment variable", lambda: dict(os.environ), _set_environment, by_modules=True),
    Setting("the import path", lambda: list(sys.path), _set_path, by_modules=True),
    Setting("the locale", lambda: locale.setlocale(locale.LC_ALL), lambda name: locale.setlocale(locale.LC_ALL, name)),
    Setting("the handler of", lambda: {n: signal.getsignal(getattr(signal, n)) for n in _HANDLED if hasattr(signal, n)},
            _set_handlers),
    Setting("decimal's", lambda: {n: getattr(decimal.getcontext(), n) for n in _DECIMAL}, _set_decimal),
    Setting("NumPy's error handling of", np.geterr, lambda errors: np.seterr(**errors)),
)  # fmt: skip

MOST = 50  # changes that are kept of one implementation
_noted: dict[str, None] = {}  # phrases, in the order in which they were noted
_by_name: dict[str, dict[str, None]] = {}  # the same of each implementation


def values(settings: Sequence[Setting]) -> dict[str, Any]:
    """What the settings are now, by name."""
    return {setting.name: setting.read() for setting in settings}


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """A phrase for each setting that differs: "the default dtype from torch.float32 to torch.float64"."""
    phrases = []
    for name, old in before.items():
        new = after[name]
        if isinstance(old, dict) and isinstance(new, dict):
            keys = [key for key in {**old, **new} if old.get(key, ABSENT) != new.get(key, ABSENT)]
            phrases += [_phrase(f"{name} {key}", old.get(key, ABSENT), new.get(key, ABSENT)) for key in keys]
        elif old != new:
            phrases.append(_phrase(name, old, new))
    return phrases


def _phrase(name: str, old: Any, new: Any) -> str:
    before, after = (foreign_text.shown_line(value, characters=60) for value in (old, new))
    name = foreign_text.shown_line(name, characters=100)
    return f"{name} from {before} to {after}" if len(before) + len(after) < 100 else name


@contextlib.contextmanager
def restored(settings: Sequence[Setting]) -> Iterator[None]:
    """A context at whose end the settings are as before; those that were not are noted."""
    before, modules = values(settings), len(sys.modules)
    try:
        yield
    finally:
        for setting in settings:
            old, new = before[setting.name], setting.read()
            if old == new or (setting.by_modules and len(sys.modules) != modules):
                continue
            setting.write(old)
            _noted.update(dict.fromkeys(differences({setting.name: old}, {setting.name: new})))


@contextlib.contextmanager
def not_noted() -> Iterator[None]:
    """A context in which settings are changed by ourselves: what is restored inside is noted of nobody."""
    before = dict(_noted)
    try:
        yield
    finally:
        _noted.clear()
        _noted.update(before)


@contextlib.contextmanager
def noted_of(name: str) -> Iterator[None]:
    """A context in which the implementation of this name alone is called: what is noted is its own."""
    _noted.clear()
    try:
        yield
    finally:
        known = _by_name.setdefault(name, {})
        known.update(dict.fromkeys(list(_noted)[: MOST - len(known)]))
        _noted.clear()


def taken(name: str) -> list[str]:
    """The changes that were noted of an implementation since they were taken last."""
    return list(_by_name.pop(name, {}))
