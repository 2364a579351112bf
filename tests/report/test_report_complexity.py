"""The section on how cost grows: exponents, chains, reasons; the same again, escaped, and silent where nothing was measured."""

from __future__ import annotations

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import msgspec
import pytest

from qkverify import report
from qkverify.report.model import Report
from qkverify.report.sections import complexity as section
from qkverify.results import Complexity, Record, Travel, of_kind

SIZE_LIMIT = 60_000  # bytes of the section


def synthetic() -> Any:
    """The module tests/synthetic_results.py, which is no package member under --import-mode=importlib."""
    spec = spec_from_file_location("synthetic_results", Path(__file__).parents[1] / "synthetic_results.py")
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return [r for r in synthetic().records() if isinstance(r, Complexity | Travel)]


def text(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def test_the_section_stands_in_the_page_and_in_the_summary(records: list[Record]) -> None:
    page = report.render(records)
    assert '<section id="complexity"' in page.html
    assert '<a href="#complexity">How cost grows</a>' in page.html
    assert "## How cost grows" in page.markdown


def test_a_page_made_again_is_the_same_bytes(records: list[Record]) -> None:
    assert report.render(records) == report.render(list(records))


def test_without_records_nothing_is_said() -> None:
    page = report.render([synthetic().run_start()])
    assert "How cost grows" not in page.html + page.markdown
    assert section.html(Report([])) == ""
    assert section.markdown(Report([])) == ""


def test_exponents_stand_beside_theory_with_what_was_counted_and_held_still(records: list[Record]) -> None:
    said = text(section.html(Report(records)))
    exponents = (
        r"self-attention 2 n² d n 2 2\.00 [12]\.\d\d \([12]\.\d\d \.\. [12]\.\d\d\) n 64 \.\. 2048, d = 128"
    )
    assert re.search(exponents, said)
    assert "on one thread and by that thread’s own clock" in said


def test_chains_stand_beside_their_orders(records: list[Record]) -> None:
    said = text(section.html(Report(records)))
    assert "O(n) 16, 32, 64, 128 O(n) 16, 32, 64, 128" in said
    assert "O(1) 1, 1, 1, 1 O(n / k) 8, 16, 32, 64" in said
    assert "at n = 16, 32, 64, 128; convolution k = 3." in said


def test_it_says_where_self_attention_becomes_the_dearer_one(records: list[Record]) -> None:
    made = {
        "self-attention": lambda n: 1e-8 * n * n,
        "recurrent": lambda n: 1e-6 * n,
        "convolution": lambda n: 1.0,
    }
    exact = [
        msgspec.structs.replace(r, seconds=[[made[r.layer](n)] * 3 for n in r.sizes])
        for r in of_kind(records, Complexity)
        if r.variable == "n" and r.implementation == "numpy"
    ]
    expected = "recurrent from n = 100 (by the counts at every length)"
    assert expected in text(section.html(Report(exact)))
    assert f"{section.LONGER}, numpy on cpu: {expected}; convolution at no length" in section.markdown(
        Report(exact)
    )
    assert section.LONGER not in section.html(Report(exact[1:]))


def test_what_was_not_timed_says_why(records: list[Record]) -> None:
    facts = Report(records)
    assert "not timed: raised MemoryError: no room" in text(section.html(facts))
    assert "not timed: raised MemoryError: no room" in section.markdown(facts)


def test_a_word_stands_only_where_theory_is_not_singled_out(records: list[Record]) -> None:
    complexity = next(r for r in of_kind(records, Complexity) if (r.layer, r.variable) == ("recurrent", "d"))
    linear = msgspec.structs.replace(complexity, seconds=[[1e-6 * n] * 3 for n in complexity.sizes])
    squared = msgspec.structs.replace(complexity, seconds=[[1e-6 * n * n] * 3 for n in complexity.sizes])
    assert '<b class="word">differs</b>' in section.html(Report([linear]))
    assert '<b class="word">' not in section.html(Report([squared]))
    assert "1.00 (1.00 .. 1.00), differs" in section.markdown(Report([linear]))


def test_charts_draw_every_layer_with_the_slope_of_theory(records: list[Record]) -> None:
    html = section.html(Report(records))
    labels = re.findall(r'aria-label="(Time against [^"]*)"', html)
    assert [label.partition(".")[0] for label in labels] == [
        f"Time against {what}, {framework} on cpu"
        for framework in ("numpy", "torch")
        for what in ("positions", "features", section.OTHERS)
    ]
    timed = [r for r in of_kind(records, Complexity) if r.seconds]
    assert html.count('class="guide"') == html.count('class="line"') == len(timed)


def test_a_record_without_samples_draws_nothing() -> None:
    empty = Complexity(
        layer="recurrent",
        formula="n d²",
        factor=2,
        variable="n",
        theory=1,
        implementation="numpy",
        device="cpu",
        dtype="float32",
        clock="host",
        threads=None,
        fixed={},
        sizes=[16],
        multiply_adds=[1],
        seconds=[[]],
        rounds=[[]],
        reason="the time budget had run out",
    )
    html = section.html(Report([empty]))
    assert "<svg" not in html
    assert "not timed: the time budget had run out" in html


def test_the_latest_record_counts(records: list[Record]) -> None:
    complexity = next(r for r in of_kind(records, Complexity) if r.seconds)
    again = msgspec.structs.replace(complexity, seconds=[[1.0 * n] * 3 for n in complexity.sizes])
    assert section.html(Report([complexity, again])) == section.html(Report([again]))


def test_data_is_escaped_wherever_it_stands(records: list[Record]) -> None:
    evil = '<img src=x onerror="alert(1)">'
    complexity = next(r for r in of_kind(records, Complexity) if r.seconds)
    names = dict.fromkeys(
        ("layer", "formula", "variable", "implementation", "device", "dtype", "reason"), evil
    )
    hostile = msgspec.structs.replace(complexity, **names, fixed={evil: 1})
    travel = msgspec.structs.replace(
        of_kind(records, Travel)[1], layer=evil, steps_theory=evil, path_theory=evil, fixed={evil: 2}
    )
    facts = Report(
        [
            hostile,
            msgspec.structs.replace(hostile, variable="n", seconds=[[] for _ in complexity.sizes]),
            travel,
        ]
    )
    assert "<img" not in section.html(facts)
    assert "<img" not in section.markdown(facts)
    assert "alert(1)" in section.html(facts)


def test_the_section_stays_small(records: list[Record]) -> None:
    assert len(section.html(Report(records)).encode()) < SIZE_LIMIT
