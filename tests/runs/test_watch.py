"""What a worker shows, its judge reads; a call that may wait for a compiler has more time."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import pytest

from qkverify.errors import UsageError
from qkverify.runs import watch
from qkverify.verification.isolation.limits import COMPILED, limits, size_of


@pytest.fixture
def boards() -> Iterator[tuple[watch.Board, watch.Board]]:
    """That of this process, as a worker, and that of its judge."""
    with tempfile.TemporaryFile() as file:
        file.truncate(watch.SIZE)
        worker, judge = watch.Board(file.fileno()), watch.Board(file.fileno())
        watch.watched_by(worker)
        yield worker, judge
        watch.watched_by(None)
        judge.close()


def test_a_call_and_its_arguments_are_seen_by_the_judge(boards: tuple[watch.Board, watch.Board]) -> None:
    _, judge = boards
    watch.example({"array": np.arange(3)})
    with watch.call():
        calls, calling, since = judge.read()
        assert (calls, calling) == (1, True)
        assert 0 <= time.monotonic() - since < 60
    assert judge.read()[:2] == (1, False)
    assert watch.last_arguments(judge.arguments())["array"].tolist() == [0, 1, 2]
    watch.example({"array": np.zeros(watch.SIZE)})  # too large to be shown
    assert watch.last_arguments(judge.arguments()) == {}
    assert not judge.forked()


def test_a_compiler_that_is_loaded_gives_calls_more_time(
    boards: tuple[watch.Board, watch.Board], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, judge = boards
    monkeypatch.setattr(watch, "COMPILERS", frozenset({"a_compiler"}))
    for loaded in (False, True):
        if loaded:
            monkeypatch.setitem(sys.modules, "a_compiler", sys)
        with watch.call():
            assert judge.compiles() is loaded
    assert limits().of_call(compiled=True) == COMPILED * limits().of_call(compiled=False)


def test_a_users_interrupt_is_told_from_one_that_a_call_raises(
    boards: tuple[watch.Board, watch.Board],
) -> None:
    assert not watch.is_users_interrupt(KeyboardInterrupt())
    watch.watched_by(None)
    assert watch.is_users_interrupt(KeyboardInterrupt())
    assert not watch.is_users_interrupt(SystemExit())


@pytest.mark.parametrize(
    ("text", "size"), [("4G", 2**32), ("512 MiB", 2**29), ("1.5k", 1536), ("1000000", 10**6)]
)
def test_a_size_of_memory(text: str, size: int) -> None:
    assert size_of(text) == size


@pytest.mark.parametrize("text", ["0", "-1G", "much", "4X", "G", "nan"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="not a size"):
        size_of(text)
