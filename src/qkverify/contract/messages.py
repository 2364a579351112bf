"""What an implementation says while it is called: warnings and prints are counted, and shown once, at the end.

A kernel that warns in each of ten thousand calls would bury its own verdict. `calling` marks a call of the implementation;
what is warned of or written to standard output and error meanwhile, by any thread, is kept if a `collected` surrounds it. What
anything else says goes where it always went, and the user's own warning filters hold. Alike but for their numbers, two messages
count as one.

The ugly spot: descriptors 1 and 2 lead into files during a call, so that what C code prints is caught as well; of a process
that a call kills, what the C library said of it is lost. Python's fault handler says instead where it died.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import re
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import parent_process
from pathlib import Path
from typing import IO, Any

from qkverify import foreign_text
from qkverify.results import Message, Verdict

DISTINCT = 50  # messages that are kept apart until they are taken; what comes beyond them is counted as one
LENGTH = 200  # characters of a message that are shown
STREAMS = ("stdout", "stderr")
_NUMBER = re.compile(r"(?<!\\x)(?<!\\u)\d+(?:\.\d+)?(?:e[+-]?\d+)?")  # that is no part of an escape
_PACKAGE = str(Path(__file__).parents[1])


@dataclass
class _State:
    """Of this process."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    collecting: bool = False
    calls: list[str] = field(default_factory=list)  # the implementations that are being called
    heard: dict[str, dict[tuple[str, str, str], Message]] = field(default_factory=dict)
    unfinished: dict[tuple[int, str], str] = field(
        default_factory=dict
    )  # by thread and stream, a line without its end
    passed_on: set[tuple[Any, ...]] = field(default_factory=set)  # warnings of the harness, each shown once
    files: _Descriptors | None = None


_state = _State()


@contextlib.contextmanager
def collected() -> Iterator[None]:
    """Inside, what `calling` surrounds is kept for `taken`. One within another changes nothing."""
    if _state.collecting:
        yield
        return
    with warnings.catch_warnings(), _streams(), _descriptors():
        warnings.simplefilter("always", append=True)  # after the user's filters: what those leave is counted
        before = warnings.showwarning
        warnings.showwarning = _shown_by(before)
        _state.collecting = True
        try:
            yield
        finally:
            _state.collecting = False


@contextlib.contextmanager
def calling(name: str) -> Iterator[None]:
    """A call of the implementation of this name."""
    if not _state.collecting:
        yield
        return
    with _state.lock:
        _state.calls.append(name)
        if len(_state.calls) == 1 and _state.files is not None:
            _state.files.into_files()
    try:
        yield
    finally:
        with _state.lock:
            _end_of_call(last=len(_state.calls) == 1)
            _state.calls.remove(name)


def note(text: str) -> None:
    """What the harness has to say of a call, among what the call says."""
    with _state.lock:
        if _state.calls:
            _hear("note", text)


def taken(name: str) -> list[Message]:
    """The messages of an implementation since they were taken last, in the order in which they came."""
    with _state.lock:
        return list(_state.heard.pop(name, {}).values())


def summed(verdicts: Iterable[Verdict]) -> dict[str, list[Message]]:
    """The messages of each implementation over all its verdicts."""
    by_implementation: dict[str, list[Message]] = {}
    for verdict in verdicts:
        if verdict.messages:
            by_implementation.setdefault(verdict.implementation, []).extend(verdict.messages)
    return {name: merged(messages) for name, messages in by_implementation.items()}


def merged(messages: Iterable[Message]) -> list[Message]:
    """Those alike counted together."""
    counted: dict[tuple[str, str, str], Message] = {}
    for message in messages:
        _add(counted, message)
    return list(counted.values())


def sentence(message: Message) -> str:
    """ "RuntimeWarning: overflow encountered in exp (mine.py:12), 4,812 times"."""
    said = f"printed to {message.kind}" if message.kind in STREAMS else message.kind
    place = f" ({message.place})" if message.place else ""
    return f"{said}: {message.text}{place}, {_times(message.count)}"


def lines(messages: Sequence[Message], most: int = 10) -> list[str]:
    """A sentence for each of the most frequent, and a last one for the rest."""
    by_count = sorted(messages, key=lambda message: -message.count)
    rest = by_count[most:]
    more = [f"{len(rest)} more kinds, {_times(sum(r.count for r in rest))} together"] if rest else []
    return [*map(sentence, by_count[:most]), *more]


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _add(heard: dict[tuple[str, str, str], Message], message: Message) -> None:
    """Count a message among those alike; where their numbers differ, these are shown as #."""
    numberless = _NUMBER.sub("#", message.text)
    key = message.kind, numberless, message.place
    if key not in heard and len(heard) >= DISTINCT:
        key, message = (
            (message.kind, "", ""),
            Message(message.kind, "what is not counted one by one", "", message.count),
        )
    known = heard.get(key)
    if known is not None:
        text = known.text if known.text == message.text else numberless
        message = Message(message.kind, text, message.place, known.count + message.count)
    heard[key] = message


def _hear(kind: str, text: str, place: str = "") -> None:
    message = Message(kind, foreign_text.shown_line(text, characters=LENGTH), place)
    with _state.lock:
        _add(_state.heard.setdefault(_state.calls[-1], {}), message)


def _shown_by(before: Any) -> Any:
    """What shows a warning: ours counts those of calls, and hands on all others, each once."""

    def show(
        message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None
    ) -> None:
        with _state.lock:
            if _state.calls:
                place = "" if filename.startswith(_PACKAGE) else f"{Path(filename).name}:{lineno}"
                kind = foreign_text.shown_line(category.__name__, characters=80)
                _hear(kind, message, foreign_text.shown_line(place, characters=100))
                return
            key = category, str(message), filename, lineno
            if key in _state.passed_on:
                return
            _state.passed_on.add(key)
        before(message, category, filename, lineno, file, line)

    return show


class _Stream:
    """Standard output or error: what a call writes is kept, all else goes on to the stream that was there."""

    def __init__(self, name: str, stream: IO[str]) -> None:
        self._name, self._stream = name, stream

    def write(self, text: str) -> int:
        with _state.lock:
            if not _state.calls:
                return self._stream.write(text)
            _wrote(self._name, str(text))
            return len(text)

    def writelines(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.write(text)

    def flush(self) -> None:
        if not _state.calls:
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _wrote(stream: str, text: str) -> None:
    """Keep the whole lines of a stream; the last one of each thread waits for its end."""
    key = threading.get_ident(), stream
    *whole, rest = (_state.unfinished.pop(key, "") + text).split("\n")
    if rest:
        _state.unfinished[key] = rest[: 10 * LENGTH]
    for line in whole:
        _heard_line(stream, line)


def _heard_line(stream: str, line: str) -> None:
    if line.strip():
        _hear(stream, line)


def _end_of_call(last: bool) -> None:
    """The lines that were left without an end, and what C code wrote until the last of several calls."""
    here = threading.get_ident()
    for key in [key for key in _state.unfinished if last or key[0] == here]:
        _heard_line(key[1], _state.unfinished.pop(key))
    if last and _state.files is not None:
        for stream, text in _state.files.back().items():
            for line in text.splitlines():
                _heard_line(stream, line)


@contextlib.contextmanager
def _streams() -> Iterator[None]:
    before = {name: getattr(sys, name) for name in STREAMS}
    ours = {name: _Stream(name, stream) for name, stream in before.items() if stream is not None}
    for name, stream in ours.items():
        before[name].flush()  # what stands in its buffer is none of a call's
        setattr(sys, name, stream)
    try:
        yield
    finally:
        for name, stream in ours.items():
            if getattr(sys, name) is stream:
                setattr(sys, name, before[name])


class _Descriptors:
    """Descriptors 1 and 2, which during calls lead into files."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._numbers = {1: "stdout", 2: "stderr"}
        self._before = {number: os.dup(number) for number in self._numbers}
        for copy in self._before.values():
            stack.callback(os.close, copy)
        self._files: dict[int, IO[bytes]] = {}
        for number in self._numbers:
            self._files[number] = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  # the stack closes it
        self._flush = ctypes.CDLL(None).fflush  # of the C library, which keeps what printf gave it
        if not faulthandler.is_enabled() and parent_process() is None:
            faulthandler.enable(self._before[2])
            stack.callback(faulthandler.disable)

    def into_files(self) -> None:
        for number, file in self._files.items():
            os.dup2(file.fileno(), number)

    def back(self) -> dict[str, str]:
        """Lead them where they led before; what was written meanwhile."""
        self._flush(None)
        for number, before in self._before.items():
            os.dup2(before, number)
        return {name: self._read(self._files[number]) for number, name in self._numbers.items()}

    def _read(self, file: IO[bytes]) -> str:
        """What is in a file, of which at most a megabyte is looked at; it is empty then."""
        if not os.fstat(file.fileno()).st_size:
            return ""
        file.seek(0)
        text = file.read(2**20).decode("utf-8", "backslashreplace")
        file.seek(0)
        file.truncate()
        return text


@contextlib.contextmanager
def _descriptors() -> Iterator[None]:
    """Where the system has no such descriptors, or they are closed, what C code prints is not caught."""
    with contextlib.ExitStack() as stack:
        if os.name == "posix":
            with contextlib.suppress(OSError):
                _state.files = _Descriptors(stack)
        try:
            yield
        finally:
            _state.files = None
