"""Text of the code under test: nothing of it reaches a terminal, a script, XML, Markdown, a page or a record raw."""

from __future__ import annotations

import io
import re
import runpy
import sys
import unicodedata
from xml.etree import ElementTree as ET

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from qkverify import foreign_text
from qkverify.cli import console as screen
from qkverify.cli import console_lists, console_matrix
from qkverify.contract import describe
from qkverify.contract.registry import find
from qkverify.counterexamples.scripts.function_source import literal
from qkverify.errors import UsageError
from qkverify.exports.file_formats import junit
from qkverify.probes.sentences import first_line
from qkverify.report import render
from qkverify.report.markdown import code, plain, table
from qkverify.results import line_of
from qkverify.verification.checking import Cell, check, law_book, prepare

HOSTILE = "<script>x</script>\x1b[31;5mRED\u202e \udc80 [/bold] [red] `|` \"\"\" ''' \r\x00\x9b\u2028 end"
TEXTS = st.text(st.characters(), max_size=700) | st.just(HOSTILE) | st.text("a\n\x1b\udc80é", max_size=700)


@given(TEXTS)
def test_what_is_shown_prints_and_can_be_encoded(text):
    for made in (foreign_text.shown(text), foreign_text.shown_line(text), foreign_text.escaped(text)):
        made.encode()
        assert all(c.isprintable() or c in "\n\t" for c in made)
        assert not any(unicodedata.category(c) in ("Cf", "Cs") for c in made)


@given(TEXTS)
def test_what_is_shown_is_short_and_stays_what_it_is(text):
    shown, line = foreign_text.shown(text), foreign_text.shown_line(text)
    assert len(shown) <= foreign_text.CHARACTERS
    assert shown.count("\n") < foreign_text.LINES
    assert len(line) <= foreign_text.CHARACTERS
    assert "\n" not in line
    assert foreign_text.shown(shown) == shown
    assert foreign_text.shown_line(line) == line
    if text.isprintable() and len(text) <= foreign_text.CHARACTERS:
        assert shown == text.strip()


def test_what_is_left_out_is_counted():
    assert foreign_text.shown("x" * 5_000_000).endswith("x ... 4,999,530 more characters")
    lines = foreign_text.shown("\n".join("line" for _ in range(30)))
    assert lines == "\n".join(["line"] * 10) + " ... 100 more characters"
    escapes = foreign_text.shown("\x1b" * 400)
    left_out = int(escapes.rpartition(" ... ")[2].split()[0])
    assert escapes.count("\\x1b") + left_out == 400


class Raises(ValueError):
    def __str__(self):
        raise SystemExit(0)

    __repr__ = __str__


class GivesNoText(ValueError):
    def __str__(self):
        return 5


class Disguised(str):
    __slots__ = ()

    def __getitem__(self, index):
        raise RuntimeError

    replace = strip = __iter__ = __len__ = encode = isprintable = __getitem__


def test_an_error_without_a_text_is_named():
    assert foreign_text.of_error(Raises()) == "Raises: <Raises without text: its __str__ raises SystemExit>"
    assert "its __str__ raises TypeError" in foreign_text.of_error(GivesNoText())
    assert foreign_text.of_error(ValueError()) == "ValueError"
    assert foreign_text.of_error(type("a\x1bb", (ValueError,), {})("c")) == "a\\x1bb: c"
    assert foreign_text.shown(Disguised("plain")) == "plain"


def test_the_first_call_says_what_cannot_be_printed():
    assert first_line(Raises()).startswith("Raises: <Raises without text")
    assert len(first_line(ValueError("x" * 10**6))) < 300
    assert first_line(ValueError("\x1b[31m \udc80\nmore")) == "ValueError: \\x1b[31m \\udc80"


def attention_that(raises):
    def attention(query, key, value, *, scale=None):
        """A summary with \x1b[31m, and more."""
        raise raises

    return attention


def verdict_of(function, law="agrees_with_reference", **declared):
    implementation = describe(function, arrays="numpy", dtypes=("float32",), **declared)
    laws = {law.name: law for law in law_book()}
    return check(laws[law], prepare(Cell(implementation, "cpu", "float32")), max_examples=5)


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """A verdict whose implementation has such text everywhere."""
    monkeypatch.chdir(tmp_path)
    return verdict_of(attention_that(ValueError(HOSTILE)), name=f"mine{HOSTILE}")


def texts_of(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for x in value.values():
            yield from texts_of(x)
    elif isinstance(value, list):
        for x in value:
            yield from texts_of(x)


def test_a_verdict_holds_no_raw_text(hostile):
    assert hostile.outcome == "failed"
    for text in texts_of(msgspec.to_builtins(hostile)):
        assert text == foreign_text.escaped(text)
    assert "\\x1b[31;5mRED\\u202e \\udc80 [/bold] [red]" in hostile.counterexample.message


def test_an_error_of_five_megabytes_is_short_in_the_record(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    verdict = verdict_of(attention_that(ValueError("x" * 5_000_000)))
    assert len(line_of(verdict)) < 10_000


@pytest.mark.parametrize("error", [Raises(), GivesNoText(), ValueError("\udc80 lone")])
def test_an_error_that_cannot_be_printed_is_a_broken_law_of_its_implementation(tmp_path, monkeypatch, error):
    monkeypatch.chdir(tmp_path)
    verdict = verdict_of(attention_that(error))
    assert verdict.outcome == "failed"
    assert type(error).__name__ in verdict.counterexample.message
    line_of(verdict)


class Stop(BaseException):
    pass


@pytest.mark.parametrize("error", [SystemExit(), SystemExit(0), Stop("stop"), GeneratorExit()])
def test_what_would_end_the_process_is_a_broken_law(tmp_path, monkeypatch, error):
    monkeypatch.chdir(tmp_path)
    verdict = verdict_of(attention_that(error))
    assert verdict.outcome == "failed"
    assert f"the call raises {type(error).__name__}" in verdict.counterexample.message


def test_an_interrupt_stays_the_users(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        verdict_of(attention_that(KeyboardInterrupt()))


def test_no_exception_of_a_test_library_makes_a_law_not_offered(tmp_path, monkeypatch):
    from unittest import SkipTest

    from hypothesis.errors import UnsatisfiedAssumption

    monkeypatch.chdir(tmp_path)
    for error in (SkipTest("skip me"), UnsatisfiedAssumption()):
        assert verdict_of(attention_that(error)).outcome == "failed"


def test_a_file_that_exits_on_import_is_a_wrong_target_and_no_success(tmp_path):
    (tmp_path / "exits.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(UsageError, match="SystemExit: 0"):
        find(f"{tmp_path / 'exits.py'}:attention")
    (tmp_path / "escape.py").write_text("raise ValueError('\\x1b[31m' + 'x' * 10**6)\n")
    with pytest.raises(UsageError, match=r"\\x1b\[31mxxx") as raised:
        find(f"{tmp_path / 'escape.py'}:attention")
    assert len(str(raised.value)) < 1_000
    assert len(raised.value.text) < 21_000


def test_junit_of_such_a_verdict_is_xml(hostile):
    root = ET.fromstring(junit.export([hostile], "verdicts"))
    assert "\\x1b[31;5mRED" in root.find(".//failure").text


def test_a_record_with_half_of_a_surrogate_pair_is_written(hostile):
    raw = msgspec.structs.replace(hostile, reason="a path: \udc80")
    assert b"a path: \\\\udc80" in line_of(raw)


def test_the_page_and_the_summary_show_it_as_text(hostile):
    page = render([hostile])
    assert "<script>x" not in page.html
    assert "&lt;script&gt;x" in page.html
    without_code = re.sub(r"(`+).*?\1", "", page.markdown, flags=re.DOTALL)
    assert "<script>x" in page.markdown
    assert "<script>" not in without_code


def test_markdown_of_foreign_text():
    assert code("a`b") == "`` a`b ``"
    assert code("a``b`") == "``` a``b` ```"
    assert plain("[x](javascript:y) `a` *b* <i>") == "\\[x](javascript:y) \\`a\\` \\*b\\* &lt;i>"
    rows = table(["a", "b"], [["1 | 2", "c\nd"]]).splitlines()
    assert rows[-1] == "| 1 \\| 2 | c d |"


def on_screen(monkeypatch, show):
    console = Console(file=io.StringIO(), width=200, highlight=False)
    for module in (screen, console_lists, console_matrix):
        monkeypatch.setattr(module, "console", console)
    show()
    return console.file.getvalue()


def test_the_terminal_shows_brackets_as_they_are(hostile, monkeypatch):
    implementation = describe(
        attention_that(ValueError(HOSTILE)), arrays="numpy", dtypes=("float32",), name="mine[/v2] [red]"
    )
    cell = Cell(implementation, "cpu", "float32")
    said = on_screen(monkeypatch, lambda: screen.heading(cell, {}))
    assert "mine[/v2] [red] · numpy" in said
    said = on_screen(monkeypatch, lambda: screen.counterexamples([hostile]))
    assert "[/bold] [red]" in said
    assert "\x1b" not in said
    gone = msgspec.structs.replace(hostile, outcome="unavailable", reason="needs [/gpu]", counterexample=None)
    said = on_screen(monkeypatch, lambda: console_matrix.matrix([hostile, gone]))
    assert "mine<script>" in said
    assert "needs [/gpu]" in said


def test_names_of_laws_and_families_are_no_markup_of_the_terminal(hostile, monkeypatch):
    """Both come from somebody's file of own laws."""
    named = msgspec.structs.replace(hostile, family="mine[/v2]", law="holds[bold]", outcome="failed")
    known = msgspec.structs.replace(named, outcome="finding", reason="see [/link]")
    said = on_screen(monkeypatch, lambda: screen.families([named, known]))
    assert "mine[/v2]" in said
    assert said.count("holds[bold]") == 2
    assert "holds[bold]" in on_screen(monkeypatch, lambda: screen.known_failures([], [known]))
    assert "holds[bold]" in on_screen(monkeypatch, lambda: console_matrix.matrix([named]))


def test_doctor_says_the_whole_extra_that_is_missing(monkeypatch):
    monkeypatch.setattr(console_lists.frameworks, "missing", lambda name: f"pip install 'qkverify[{name}]'")
    monkeypatch.setattr(console_lists, "implementations", lambda: None)
    said = on_screen(monkeypatch, console_lists.doctor)
    assert "pip install 'qkverify[torch]'" in said


FOLDERS = ['a"b', "it's", "new\nline", "back\\slash", "\udc80", "émoji \U0001f600", "\u202e"]


@pytest.mark.parametrize("name", FOLDERS)
def test_any_file_name_is_a_literal_of_python(name):
    assert eval(literal(name)) == name
    assert all(c.isprintable() for c in literal(name))


@pytest.mark.parametrize(
    "name", ['a"; print("injected"); "', "new\nprint('injected')\n#", "émoji \U0001f600"]
)
def test_the_script_of_a_failure_loads_a_file_of_any_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / f"{name}.py"
    file.write_text(
        "import numpy as np\n\ndef attention(query, key, value, *, scale=None):\n    return np.zeros_like(value)\n"
    )
    (implementation,) = find(f"{file}:attention")
    law = next(law for law in law_book() if law.name == "agrees_with_reference")
    verdict = check(law, prepare(Cell(implementation, "cpu", "float32")), max_examples=20)
    assert verdict.outcome == "failed"
    assert verdict.counterexample.script
    (tmp_path / "script.py").write_text(verdict.counterexample.script, "utf-8")
    printed = io.StringIO()
    monkeypatch.setattr(sys, "stdout", printed)
    with pytest.raises((AssertionError, ValueError)):
        runpy.run_path(str(tmp_path / "script.py"))
    assert "injected" not in printed.getvalue()


def test_numbers_are_not_touched():
    """A right function keeps its name and holds."""

    def attention(query, key, value, *, scale=None):
        scores = (
            query @ key.swapaxes(-1, -2) * np.float32(query.shape[-1] ** -0.5 if scale is None else scale)
        )
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return weights @ value / weights.sum(-1, keepdims=True)

    assert verdict_of(attention, requires=("G == H", "K >= 1")).outcome == "passed"
