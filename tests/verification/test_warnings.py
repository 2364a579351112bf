"""What an implementation warns of and prints is counted and shown once; what others say is left alone."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
from rich.console import Console

from qkverify.cli import console as screen
from qkverify.contract import describe, messages
from qkverify.results import Message, Verdict, line_of
from qkverify.verification import checking
from qkverify.verification.checking import Cell, check, law_book, prepare

NOISY = """
import ctypes, os, sys, warnings
import numpy as np

C = ctypes.CDLL(None)
calls = [0]

def attention(query, key, value, *, scale=None):
    calls[0] += 1
    print("step", calls[0])
    print("unfinished [/red] \\x1b[31m", end="", file=sys.stderr)
    C.printf(b"from C\\n")
    os.write(2, b"raw \\xff\\n")
    warnings.warn(f"call {calls[0]} is slow", stacklevel=1)
    np.exp(np.float32(1000))
    if query.shape[1] != key.shape[1] or query.shape[-1] != key.shape[-1] or key.shape[:3] != value.shape[:3]:
        raise ValueError("sizes")
    scores = query @ np.swapaxes(key, -1, -2) * query.dtype.type(query.shape[-1] ** -0.5 if scale is None else scale)
    if not key.shape[2]:
        return np.zeros(query.shape[:-1] + value.shape[-1:], query.dtype)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights @ value / weights.sum(-1, keepdims=True)
"""
SAID = {
    "printed to stdout: step #",
    "printed to stderr: unfinished [/red] \\x1b[31m",
    "printed to stdout: from C",
    "printed to stderr: raw \\xff",
    "UserWarning: call # is slow (noisy.py:14)",
    "RuntimeWarning: overflow encountered in exp (noisy.py:15)",
}
ALONE = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}


def run_in(folder, *command):
    (folder / "noisy.py").write_text(NOISY)
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=ALONE, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_verify_shows_each_once_with_how_often(tmp_path, jobs):
    options = ("--profile", "glance", "--dtype", "float32", "--jobs", jobs)
    done = run_in(tmp_path, "qkverify.cli", "verify", "noisy.py:attention", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    said = (
        done.stdout.partition("warnings and prints of noisy:attention\n")[2].partition("\n\n")[0].splitlines()
    )
    assert {line.strip().rpartition(", ")[0] for line in said} == SAID
    counts = [int(line.rpartition(", ")[2].split()[0].replace(",", "")) for line in said]
    assert min(counts) > 100
    assert done.stdout.count("step") == 1
    assert "\x1b" not in done.stdout


def test_pytest_shows_each_once_in_a_section_of_ours(tmp_path):
    options = (
        "--implementation",
        "noisy.py:attention",
        "--dtype",
        "float32",
        "--hypothesis-profile",
        "glance",
        "-q",
    )
    done = run_in(
        tmp_path, "pytest", "-p", "no:cacheprovider", "--pyargs", "qkverify.properties.test_softmax", *options
    )
    assert done.returncode == 0, done.stdout
    for line in SAID:
        assert done.stdout.count(f"{line}, ") == 1
    assert "warnings summary" not in done.stdout
    assert "Captured" not in done.stdout


def attention_that(does):
    def attention(query, key, value, *, scale=None):
        does()
        return np.zeros_like(value)

    return attention


def verdict_of(function, law="rows_sum_to_one"):
    implementation = describe(function, arrays="numpy", dtypes=("float32",), name="mine")
    laws = {law.name: law for law in law_book()}
    return check(laws[law], prepare(Cell(implementation, "cpu", "float32")), max_examples=5)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def kinds(verdict):
    return {(message.kind, message.text) for message in verdict.messages}


def test_what_is_warned_of_and_printed_stands_in_the_verdict(capfd):
    def say():
        warnings.warn("beware \x1b[0m", RuntimeWarning, stacklevel=1)
        print("hello")

    with warnings.catch_warnings(record=True) as caught:
        verdict = verdict_of(attention_that(say))
    assert not [warning for warning in caught if "beware" in str(warning.message)]
    assert kinds(verdict) == {("RuntimeWarning", "beware \\x1b[0m"), ("stdout", "hello")}
    assert b"beware" in line_of(verdict)
    assert capfd.readouterr() == ("", "")


def test_the_filters_of_the_user_hold():
    def say():
        warnings.warn("beware", RuntimeWarning, stacklevel=1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        assert verdict_of(attention_that(say)).messages == []
        warnings.simplefilter("error", RuntimeWarning)
        assert "RuntimeWarning: beware" in verdict_of(attention_that(say)).counterexample.message


def test_what_the_harness_says_is_not_the_implementations(capsys):
    with messages.collected(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        print("a law's own print")
    assert capsys.readouterr().out == "a law's own print\n"
    assert messages.taken("mine") == []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with messages.collected():
            for _ in range(3):
                warnings.warn("ours", RuntimeWarning, stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["ours"]


def test_threads_of_an_implementation_are_heard():
    def say():
        thread = threading.Thread(target=lambda: warnings.warn("from a thread", RuntimeWarning, stacklevel=1))
        thread.start()
        thread.join()

    assert ("RuntimeWarning", "from a thread") in kinds(verdict_of(attention_that(say)))


def test_calls_in_threads_count_every_print():
    def call(number):
        with messages.calling("mine"):
            print(f"call {number}")

    with messages.collected():
        threads = [threading.Thread(target=call, args=(number,)) for number in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sum(message.count for message in messages.taken("mine")) == 50


def test_the_streams_are_put_back_whatever_a_call_does():
    before = sys.stdout, sys.stderr, warnings.showwarning

    def replace():
        sys.stdout = io.StringIO()
        raise ValueError("no")

    stdout = sys.stdout
    try:
        assert verdict_of(attention_that(replace)).outcome == "failed"
    finally:
        sys.stdout = stdout
    assert (sys.stdout, sys.stderr, warnings.showwarning) == before


def test_very_many_kinds_and_megabytes_stay_few_and_short():
    with messages.collected():
        for number in range(200):
            with messages.calling("mine"):
                print("".join(chr(97 + int(digit)) for digit in str(number)))
        with messages.calling("mine"):
            print("x" * 5_000_000)
            os.write(1, b"y" * 5_000_000)
    said = messages.taken("mine")
    assert len(said) <= messages.DISTINCT + 1
    assert sum(message.count for message in said) == 202
    assert all(len(message.text) <= messages.LENGTH for message in said)
    assert len(messages.lines(said)) == 11
    assert messages.lines(said)[-1].startswith("41 more kinds, ")


def test_remarks_alike_but_for_their_numbers_are_one():
    said = [
        Message("UserWarning", "row 3 of 4", "mine.py:1", 2),
        Message("UserWarning", "row 5 of 4", "mine.py:1"),
    ]
    said.append(Message("UserWarning", "row 3 of 4", "mine.py:9"))
    assert messages.lines(messages.merged(said)) == [
        "UserWarning: row # of # (mine.py:1), 3 times",
        "UserWarning: row 3 of 4 (mine.py:9), once",
    ]


def test_the_screen_shows_nothing_where_nothing_was_said(monkeypatch):
    console = Console(file=io.StringIO(), width=100)
    monkeypatch.setattr(screen, "console", console)
    silent = Verdict("law", "family", "Sentence.", False, "mine", "cpu", "float32", "passed")
    screen.messages([silent])
    assert console.file.getvalue() == ""
    verification = checking.Verification([silent])
    assert verification.messages == {}
