"""The report as text: what it says of each outcome, that it is the same bytes again, what bad input gets."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from importlib.util import module_from_spec, spec_from_file_location
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from qkverify import report, results, units
from qkverify.errors import UsageError
from qkverify.report import charts, finding_links, headline, svg, timings
from qkverify.report.finding_links import Links
from qkverify.report.model import Report
from qkverify.report.sections import broken, scaling, tradeoff, verdicts
from qkverify.results import (
    Control,
    ImplementationInfo,
    Kill,
    Planted,
    Record,
    Timing,
    Verdict,
    Writer,
    of_kind,
)
from qkverify.timing import statistics
from qkverify.verification import outcomes

REPORTS = Path(__file__).parents[2] / "reports"
SECTIONS_LIMIT = 80_000  # of Scaling and of Speed and accuracy together
SIZE_LIMIT = 1_500_000  # bytes of a page
VOID = {"meta", "link", "input", "br", "hr", "img", "wbr"}


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
    return list(synthetic().records())


@pytest.fixture(scope="module")
def page(records: list[Record]) -> report.Page:
    return report.render(records)


@dataclass
class Document(HTMLParser):
    """What the tests ask of a page: its elements with their attributes, and that it is well formed."""

    source: str
    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def having(self, attribute: str, *tags: str) -> list[str]:
        return [
            a[attribute] or "" for tag, a in self.elements if attribute in a and (not tags or tag in tags)
        ]


@pytest.fixture(scope="module")
def document(page: report.Page) -> Document:
    return Document(page.html)


def write(path: Path, records: list[Record]) -> Path:
    with results.Writer(path) as writer:
        for record in records:
            writer.append(record)
    return path


def passing(**changes: Any) -> Verdict:
    facts: dict[str, Any] = {
        "law": "rows_sum_to_one",
        "family": "softmax",
        "sentence": "A row sums to one.",
        "exact": False,
        "implementation": "mine",
        "device": "cpu",
        "dtype": "float32",
        "outcome": "passed",
        "examples": 10,
        "margin": 0.5,
    }
    return Verdict(**{**facts, **changes})


def timing(name: str, seconds: list[float], **changes: Any) -> Timing:
    sizes = {"B": 1, "H": 1, "G": 1, "Q": 64, "K": 64, "D": 8, "E": 8}
    facts: dict[str, Any] = {
        "case": "case-64",
        "sizes": sizes,
        "causal": False,
        "options": "",
        "implementation": name,
        "device": "cpu",
        "dtype": "float32",
        "direction": "forward",
        "clock": "host",
        "seconds": seconds,
        "rounds": list(range(len(seconds))),
        "flops": 1000,
        "bytes": 1000,
    }
    return Timing(**{**facts, **changes})


# -- The same bytes, small, and nothing from outside --------------------------------------------------------


def test_a_page_made_again_is_the_same_bytes(page: report.Page) -> None:
    assert report.render(synthetic().records()) == page


@pytest.mark.parametrize("seed", ["1", "2"])
def test_the_bytes_do_not_depend_on_the_hash_seed(page: report.Page, tmp_path: Path, seed: str) -> None:
    source = write(tmp_path / "results.jsonl", synthetic().records())
    code = "import sys; from qkverify import report; report.write(sys.argv[1], sys.argv[2])"
    environment = {
        **os.environ,
        "PYTHONHASHSEED": seed,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    subprocess.run([sys.executable, "-c", code, source, tmp_path], check=True, env=environment)
    assert (tmp_path / "index.html").read_bytes() == page.html.encode()
    assert (tmp_path / "summary.md").read_bytes() == page.markdown.encode()


def test_a_page_over_many_laws_and_implementations_stays_small() -> None:
    families = (
        "softmax",
        "attention",
        "masking",
        "heads",
        "positions",
        "gradients",
        "contract",
        "decode",
        "layers",
    )
    many: list[Record] = [
        passing(
            implementation=f"implementation_{i}",
            dtype=dtype,
            family=family,
            law=f"a_law_with_a_long_name_number_{n}",
        )
        for i in range(20)
        for dtype in ("float64", "float32", "float16", "bfloat16")
        for family in families
        for n in range(12)
    ]
    assert len(report.render(many).html.encode()) < SIZE_LIMIT


@pytest.mark.parametrize("path", sorted(REPORTS.glob("*/results.jsonl")), ids=lambda path: path.parent.name)
def test_the_committed_results_make_a_small_page_and_the_same_again(path: Path, tmp_path: Path) -> None:
    first, second = (report.write(path, tmp_path / name)[0].read_bytes() for name in ("once", "again"))
    assert first == second
    assert len(first) < SIZE_LIMIT


def test_the_page_over_all_devices_is_the_same_again(records: list[Record], tmp_path: Path) -> None:
    for name in ("b-device", "a-device"):
        write(tmp_path / name / "results.jsonl", records)
    first = report.write_index(tmp_path).read_bytes()
    assert report.write_index(tmp_path).read_bytes() == first
    assert first.index(b"a-device") < first.index(b"b-device")


def test_nothing_is_loaded_from_outside(page: report.Page, document: Document) -> None:
    assert len(page.html.encode()) < SIZE_LIMIT
    assert document.having("src") == []
    assert document.having("href", "link") == ["data:,"]
    assert not re.search(r"url\(|@import", page.html)
    policy = next(
        a["content"] for _, a in document.elements if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy
    assert policy.startswith("default-src 'none'")


# -- Well formed, and readable without eyes or a mouse ------------------------------------------------------


def test_links_within_the_page_lead_somewhere_and_ids_are_unique(document: Document) -> None:
    ids = document.having("id")
    assert len(ids) == len(set(ids))
    assert {href[1:] for href in document.having("href") if href.startswith("#")} <= set(ids)
    for attribute in ("aria-labelledby", "aria-controls"):
        assert set(document.having(attribute)) <= set(ids)


def test_tables_have_headers_and_pictures_have_words(document: Document) -> None:
    assert all("scope" in a for tag, a in document.elements if tag == "th")
    pictures = [a for tag, a in document.elements if a.get("role") == "img"]
    assert pictures
    assert all(a.get("aria-label") for a in pictures)
    assert {"header", "main", "nav", "footer"} <= {tag for tag, _ in document.elements}
    regions = [a for _, a in document.elements if "scroll" in (a.get("class") or "").split()]
    assert all(
        a.get("tabindex") == "0" and a.get("aria-label") for a in regions
    )  # else no keyboard scrolls them


def test_data_is_escaped_wherever_it_stands() -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & \"'"
    counterexample = results.Counterexample(evil, evil, evil, evil, evil, 2.0, evil, evil, evil)
    hostile = passing(
        law=evil,
        sentence=evil,
        implementation=evil,
        family=evil,
        dtype=evil,
        device=evil,
        outcome="failed",
        reason=evil,
        counterexample=counterexample,
    )
    start = synthetic().run_start()
    rows = [
        start,
        ImplementationInfo(evil, evil, evil, evil, evil),
        hostile,
        timing(evil, [1.0], case=evil, reason=evil),
    ]
    document = Document(report.render(rows, title=evil).html)
    assert "alert(1)" in document.text
    assert [tag for tag, _ in document.elements].count("script") == 2  # the data and the page's own
    assert document.having("onerror") == []
    assert "img" not in [tag for tag, _ in document.elements]


# -- What it says -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcomes", "sentence", "state"),
    [
        ([], "Nothing was verified in this run", "empty"),
        (["not offered"], "Nothing was verified in this run", "empty"),
        (["passed"], "Every law holds for kernel_0", "good"),
        (["passed", "passed"], "Every law holds for all 2 implementations", "good"),
        (["passed", "finding"], "1 of 2 implementations keeps every law; 1 has known failures", "good"),
        (["finding"], "kernel_0 has 1 known failure; every other law holds", "good"),
        (["failed", "finding"], "1 of 2 implementations breaks a law; 1 has known failures", "bad"),
        (["failed"], "kernel_0 breaks 1 law", "bad"),
        (["passed", "failed"], "1 of 2 implementations breaks a law", "bad"),
        (["crashed", "timed out", "passed"], "2 of 3 implementations break a law", "bad"),
        (["passed", "error"], "The harness failed in 1 case; no law is broken elsewhere", "bad"),
    ],
)
def test_the_verdict_is_one_sentence(outcomes: list[Any], sentence: str, state: str) -> None:
    rows = [passing(implementation=f"kernel_{i}", outcome=outcome) for i, outcome in enumerate(outcomes)]
    verdict = headline.of(Report(rows))
    assert (verdict.sentence, verdict.state) == (sentence, state)


def test_the_facts_name_device_laws_examples_and_control(document: Document) -> None:
    words = " ".join(document.text.split())
    for fact in (
        "30 laws in 7 families",
        "7 implementations in float64, float32, float16, bfloat16",
        "2 cores",
    ):
        assert fact in words
    assert re.search(r"[\d,]+ generated examples in \d+ configurations", words)
    assert "differs by up to 1.0 % in a typical case, up to 1.0 % in the worst" in words


def test_a_square_says_what_its_outcome_needs(records: list[Record]) -> None:
    said = {c.id: verdicts.words(c) for c in Report(records).cells}
    assert said["cell-synthetic_broken-cpu-float32-masking"][0] == "causal_prefix"
    assert said["cell-synthetic_broken-cpu-float32-masking"][1] == "margin 3.4e+06, + 1 more"
    assert said["cell-synthetic_broken-cpu-float32-gradients"] == ("not offered", "")
    assert said["cell-synthetic_flash-cpu-bfloat16-gradients"] == (
        "vjp_agrees_with_reference",
        "known failure",
    )
    assert said["cell-synthetic_fragile-cpu-float32-attention"] == ("crashed: agrees_with_reference", "")
    assert said["cell-synthetic_fragile-cpu-bfloat16-masking"] == ("timed out: padding_is_never_read", "")
    assert said["cell-synthetic_eager-cpu-float16-attention"] == ("harness failed: linear_in_values", "")
    assert said["cell-synthetic_flash-cpu-float32-contract"] == ("exact", "")


def test_the_square_of_a_passed_family_shows_its_largest_margin() -> None:
    rows = [
        passing(law="a", margin=0.25),
        passing(law="b", margin=0.75),
        passing(law="c", margin=None, exact=True),
    ]
    (cell,) = Report(rows).cells
    assert verdicts.words(cell) == ("0.75", "")
    assert "3 laws of 3 held, 30 examples" in verdicts.aloud(cell)


def test_what_is_unavailable_says_why(page: report.Page) -> None:
    words = " ".join(Document(page.html).text.split())
    gone = "unavailable on cuda: no CUDA device synthetic_eager, synthetic_flash, synthetic_cudnn"
    assert gone in words
    assert "- cuda: no CUDA device: `synthetic_eager`, `synthetic_flash`, `synthetic_cudnn`" in page.markdown


def test_an_implementation_that_nothing_was_run_on_is_still_there() -> None:
    (row,) = Report([ImplementationInfo("idle", "attention", "", "numpy", "idle.py")]).rows
    assert (row.cells, row.reason) == ({}, "no law was run on it")


def test_every_square_has_its_laws_behind_it(
    records: list[Record], document: Document, page: report.Page
) -> None:
    match = re.search(r'id="verdict-data">(.*?)</script>', page.html, re.DOTALL)
    assert match
    data = json.loads(match[1])
    assert len([v for v in of_kind(records, Verdict)]) == sum(map(len, data["cells"].values()))
    assert set(data["cells"]) == set(document.having("data-cell"))
    assert {card for cards in data["cards"].values() for card in cards} <= set(
        document.having("id", "article")
    )


def test_a_counterexample_and_its_replay_line_stand_on_the_page(document: Document) -> None:
    assert "causal looks aligned top-left, declared bottom-right" in document.text
    assert "qkverify replay 7f3a" in document.text
    assert "the process died with signal 11" in document.text
    assert "import torch" in document.text  # the script without qkverify


@pytest.mark.parametrize(
    ("reason", "link"),
    [
        ("see reports/findings/a-slug.", '<a href="../findings/a-slug/">reports/findings/a-slug</a>'),
        ("https://example.org/issues/1, and more", '<a href="https://example.org/issues/1">'),
        ("<b> reports/findings/x", "&lt;b&gt; <a href"),
        ("no link", "no link"),
    ],
)
def test_a_finding_links_to_its_reason(reason: str, link: str) -> None:
    assert link in Links("../findings/", frozenset({"a-slug", "x"})).html(reason)


def test_a_finding_whose_folder_is_not_there_is_no_link(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(finding_links, "repository", lambda: "")
    (tmp_path / "findings" / "mine").mkdir(parents=True)
    links = finding_links.of_folder(tmp_path / "cpu")
    text = "see reports/findings/mine and reports/findings/a-slug"
    assert (
        links.markdown(text) == "see [reports/findings/mine](../findings/mine/) and reports/findings/a-slug"
    )
    assert links.html(text).endswith("</a> and reports/findings/a-slug")


def test_where_no_folder_of_findings_is_at_hand_a_link_leads_to_the_repository_or_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = "see reports/findings/a-slug."
    monkeypatch.setattr(finding_links, "repository", lambda: "")
    assert (Links().html(text), Links().markdown(text)) == (text, text)
    monkeypatch.setattr(finding_links, "repository", lambda: "https://example.org/q")
    address = "https://example.org/q/tree/main/reports/findings/a-slug"
    assert f'<a href="{address}">' in Links().html(text)
    assert f"[reports/findings/a-slug]({address})" in Links().markdown(text)
    monkeypatch.setattr(finding_links, "CHECKOUT", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert finding_links.placed(text) == f"see {address}."


def test_a_page_links_to_the_findings_beside_its_folder_only_where_they_are(tmp_path: Path) -> None:
    known = passing(outcome="finding", reason="reports/findings/a-slug")
    source = write(tmp_path / "one" / "results.jsonl", [known])
    assert "../findings/" not in report.write(source, tmp_path / "one")[0].read_text()
    (tmp_path / "findings" / "a-slug").mkdir(parents=True)
    assert '<a href="../findings/a-slug/">' in report.write(source, tmp_path / "one")[0].read_text()


def test_a_broken_law_shows_the_margin_of_its_counterexample() -> None:
    example = results.Counterexample("again: qkverify replay 7f3a", "", "1", "2", "3", 42.0, "", "7f3a")
    failed = passing(
        outcome="failed", margin=0.1, counterexample=example, reason="again: qkverify replay 7f3a"
    )
    (cell,) = Report([failed]).cells
    assert verdicts.words(cell) == ("rows_sum_to_one", "margin 42")
    assert broken.reason(failed) == ""  # the message has said so


def test_accusations_are_gathered_by_implementation() -> None:
    rows = [passing(outcome="failed", law=law, dtype=d) for law in ("a", "b") for d in ("float32", "float64")]
    (charge,) = headline.of(Report(rows)).charges
    assert (charge.laws, charge.dtypes) == (("a", "b"), ("float32", "float64"))
    assert "<code>a</code></a> and 1 more <small>float32, float64 on cpu" in report.render(rows).html


def test_many_broken_laws_are_folded_and_none_is_left_out() -> None:
    rows = [passing(outcome="failed", law=f"law_{n}") for n in range(broken.UNFOLDED + 3)]
    html = report.render(rows).html
    assert "<summary>3 more</summary>" in html
    assert len(Document(html).having("id", "article")) == broken.UNFOLDED + 3


def test_the_address_of_a_square_exists_without_the_script(document: Document, page: report.Page) -> None:
    """On the square itself, or on the card of its first counterexample."""
    assert set(document.having("data-cell")) <= set(document.having("id"))
    broken_square = "cell-synthetic_broken-cpu-float32-masking"
    card = page.html.index(f'id="{broken_square}"')
    start = page.html.rindex("<article", 0, card)
    assert "case-synthetic_broken-cpu-float32-masking-causal_prefix" in page.html[start:card]


def test_a_law_broken_in_every_dtype_is_told_once_and_the_rest_folded() -> None:
    rows = [passing(outcome="failed", dtype=d, law=law) for d in ("float32", "float64") for law in "ab"]
    html = report.render(rows).html
    folded = html.index("The same causes in other laws and dtypes: 2 more")
    cards = re.findall(r'id="(case-[^"]*)"', html)
    assert [html.index(f'id="{card}"') < folded for card in cards] == [True, True, False, False]
    assert {card.split("-")[3] for card in cards[:2]} == {"float32"}


def test_what_one_family_judges_stands_in_a_matrix_of_its_own(records: list[Record]) -> None:
    several, single = verdicts.matrices(Report(records))
    assert several.families == ["softmax", "attention", "masking", "heads", "gradients", "contract"]
    assert (single.families, single.dtypes) == (["positions"], ["float64", "float32"])
    assert [name for name, _, _ in single.groups] == ["synthetic_encoding"]
    shown = {
        c.id for m in (several, single) for _, _, rows in m.groups for r in rows for c in r.cells.values()
    }
    assert shown == {c.id for c in Report(records).cells}  # none is lost between them


def test_a_finding_is_no_failure(records: list[Record], page: report.Page) -> None:
    facts = Report(records)
    assert {v.outcome for v in facts.findings} == {"finding"}
    assert not set(map(id, facts.findings)) & set(map(id, facts.broken))
    assert "known failure" in page.html
    there = report.render(records, links=Links("../findings/", frozenset({"synthetic-accumulation"})))
    assert "](../findings/synthetic-accumulation/)" in there.markdown


def test_the_latest_record_of_a_cell_counts() -> None:
    facts = Report(
        [passing(outcome="failed"), passing(margin=0.1), timing("mine", []), timing("mine", [0.5])]
    )
    assert [v.outcome for v in facts.verdicts] == ["passed"]
    assert [t.seconds for t in facts.timings] == [[0.5]]


def test_runs_that_are_not_alike_are_pointed_out() -> None:
    start = synthetic().run_start()
    other = msgspec.structs.replace(
        start, fingerprint=results.Fingerprint({**start.fingerprint.identity, "torch": "9"}, {})
    )
    assert "The runs in this file are not alike:</strong> torch changed" in report.render([start, other]).html
    assert "not alike" not in report.render([start, start]).html


def test_conventions_say_how_they_are_known(page: report.Page, document: Document) -> None:
    assert "causal alignment" in document.text
    assert "top-left (detected)" in page.markdown
    assert "bottom-right (declared)" in page.markdown


def test_a_kind_of_record_that_is_not_there_leaves_its_section_out() -> None:
    html = report.render([passing()]).html
    assert 'id="verdicts"' in html
    for section in ("speed", "memory", "broken", "semantics", "environment"):
        assert f'<section id="{section}"' not in html


# -- Times --------------------------------------------------------------------------------------------------


def test_a_cell_that_was_not_timed_says_why(document: Document, page: report.Page) -> None:
    words = " ".join(document.text.split())
    assert "not timed: breaks causal_prefix" in words
    assert "not timed: not offered: gradients" in words
    alone = report.render([timing("mine", [], reason="the budget had run out")])
    assert "Not timed:\n\n- case-64, float32 on cpu, forward: the budget had run out" in alone.markdown
    assert "the budget had run out (<code" in alone.html


def test_rows_are_held_against_the_fastest() -> None:
    rows: list[Record] = [timing("slow", [3.0, 3.3, 3.0, 3.0]), timing("fast", [1.0, 1.1, 1.0, 1.0])]
    first, second = timings.lines(of_kind(rows, Timing), Report(rows))
    assert (first.timing.implementation, first.word, first.share_of_slowest) == ("fast", "fastest", 1 / 3)
    assert (second.ratio, second.word) == ("3.00 × (3.00 .. 3.00)", "slower")


def test_what_held_the_device_back_and_how_it_rounds_stand_in_the_environment(page: report.Page) -> None:
    for said in (
        "<td>waiting for a &lt;core&gt;: 15 (7.5 %)</td><td>2400 .. 3100 MHz, load up to 1.5</td>",
        "<td>10 bits, to nearest</td><td>23 bits, truncated</td>",
        "<td>&lt;truncates&gt;</td>",
        "raised ValueError: no &lt;unit&gt;",
    ):
        assert said in page.html


def test_a_difference_is_judged_beyond_the_reach_of_its_own_control_and_not_within() -> None:
    noise = Control("case-64", "fast", "cpu", "float32", 1.2, 0.9, 1.5)
    for seconds, word in ((3.0, "slower"), (1.3, "undecided")):
        rows: list[Record] = [timing("slow", [seconds] * 4), timing("fast", [1.0] * 4)]
        assert timings.lines(of_kind(rows, Timing), Report([*rows, noise]))[1].word == word


def test_cases_that_differ_in_length_only_are_one_family(records: list[Record]) -> None:
    families, alone = timings.families(timings.at(Report(records), "cpu", "float32"))
    assert [(f.name, len(f.cases), f.shape) for f in families] == [
        ("synthetic-base", 5, "1 × 8 × length × 64, causal")
    ]
    assert alone == ["synthetic-gpt2", "synthetic-decode"]


def test_the_share_is_of_the_roofline_that_was_measured() -> None:
    matmul, copy = (
        results.Ceiling("cpu", "float32", what, rate) for what, rate in (("matmul", 4000.0), ("copy", 1e9))
    )
    timed = timings.timed(timing("mine", [1.0]), Report([matmul, copy]))
    assert timed
    assert (timed.rate, timed.share) == (1000.0, 0.25)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_growth_is_fitted_over_lengths(power: float) -> None:
    lengths = [128, 256, 512, 1024]
    assert timings.exponent(lengths, [3 * n**power for n in lengths]) == pytest.approx(power)
    assert timings.exponent([128, 256], [1.0, 2.0]) is None
    assert timings.exponent([128, 256, 512], [None, 2.0, 4.0]) is None


# -- Scaling, and speed against accuracy ---------------------------------------------------------------------


def growing(
    name: str, seconds: Any, lengths: tuple[int, ...] = (128, 256, 512, 1024), **changes: Any
) -> list[Timing]:
    """One implementation over lengths, its samples by `seconds(length)`, doing four operations for every pair."""
    sizes = {"B": 1, "H": 1, "G": 1, "D": 8, "E": 8}
    return [
        timing(
            name, seconds(n), case=f"case-{n}", sizes={**sizes, "Q": n, "K": n}, flops=4 * n * n, **changes
        )
        for n in lengths
    ]


def test_the_exponent_of_time_has_an_interval_that_other_rounds_respect() -> None:
    """The interval of a percentile bootstrap of few medians is a little narrow: at most twice its share may miss.

    400 runs with 10 % of noise and growth of exactly two; the binomial count of misses at that share, plus four of its
    standard deviations.
    """
    runs, share = 400, 2 * (1 - statistics.CONFIDENCE)
    rng = np.random.default_rng(5)
    missed = 0
    for _ in range(runs):
        growth = timings.growth(growing("mine", lambda n: list(1e-9 * n**2 * np.exp(rng.normal(0, 0.1, 12)))))
        assert growth
        assert growth.low is not None
        assert growth.high is not None
        missed += not growth.low <= 2 <= growth.high
    assert 0 < missed <= runs * share + 4 * (runs * share * (1 - share)) ** 0.5


def test_growth_says_how_the_line_bends_and_what_was_counted() -> None:
    overhead = timings.growth(growing("mine", lambda n: [1e-3 + 1e-9 * n**2] * 3))
    assert overhead
    assert overhead.exponent < overhead.last < 2
    assert overhead.counted == pytest.approx(2)
    assert (overhead.shortest, overhead.longest, overhead.fitted) == (128, 1024, 4)


def test_two_rounds_give_an_exponent_without_an_interval_and_two_lengths_none() -> None:
    few = timings.growth(growing("mine", lambda n: [1e-9 * n**2] * 2))
    assert few
    assert few.exponent == pytest.approx(2)
    assert (few.low, few.high) == (None, None)
    assert timings.growth(growing("mine", lambda n: [1e-9 * n**2] * 5, (128, 256))) is None


def test_scaling_is_held_against_theory() -> None:
    quick = growing("linear", lambda n: [1e-6 * n] * 3, peak_bytes=1000)
    slow = growing("cubic", lambda n: [1e-9 * n**3] * 3)
    (panel,) = scaling.panels(Report([*quick, *slow]))
    assert {row.implementation: row.word for row in panel.rows} == {
        "linear": "grows slower",
        "cubic": "grows faster",
    }
    page = report.render([*quick, *slow])
    assert "cubic 3.00" in page.html
    assert "| `cubic` | 3.00 | 3.00 .. 3.00 | 3.00 |  |" in page.markdown


def test_memory_that_grows_with_the_square_keeps_the_score_matrix() -> None:
    rows = [
        msgspec.structs.replace(t, peak_bytes=t.sizes["K"] ** 2)
        for t in growing("mine", lambda n: [1e-9 * n**2] * 3)
    ]
    (panel,) = scaling.panels(Report(rows))
    assert (panel.rows[0].memory, panel.rows[0].kept) == (pytest.approx(2), "the whole score matrix")


def test_too_few_lengths_are_said_so() -> None:
    html = report.render(growing("mine", lambda n: [1e-9 * n**2] * 3, (128, 256))).html
    assert '<section id="scaling"' in html
    assert "1 fit left out: fewer than 3 of the lengths were timed" in html


def scored(*standings: tuple[str, float, float]) -> Report:
    """One case: (implementation, seconds, margin)."""
    return Report([timing(name, [seconds] * 3, margin=error) for name, seconds, error in standings])


def test_the_front_is_what_no_other_one_beats() -> None:
    rng = np.random.default_rng(2)
    points = [(f"kernel_{i}", *map(float, rng.integers(1, 7, 2) / 10)) for i in range(30)]
    (case,) = tradeoff.cases(scored(*points))
    expected = {
        name for name, s, e in points if not any(a <= s and b <= e and (a, b) != (s, e) for _, a, b in points)
    }
    assert {s.implementation for s in case.front} == expected
    assert 0 < len(expected) < 30


def test_the_front_is_named_in_words() -> None:
    (case,) = tradeoff.cases(
        scored(("quick", 0.001, 0.5), ("fair", 0.01, 0.2), ("careful", 0.1, 0.1), ("poor", 0.2, 0.9))
    )
    assert case.sentence == (
        "quick (1.00 ms, 0.50) is the fastest, then fair; careful (100 ms, 0.10) the nearest to exact"
    )
    (case,) = tradeoff.cases(scored(("best", 0.001, 0.1), ("worse", 0.01, 0.2)))
    assert case.sentence == "best (1.00 ms, 0.10) is both the fastest and the nearest to exact"


def test_on_a_noisy_machine_the_front_says_what_it_is_worth() -> None:
    rows: list[Record] = [timing("quick", [1e-3] * 3, margin=0.5), timing("careful", [1e-2] * 3, margin=0.1)]
    caveat = "does not order what is near"
    assert caveat not in report.render(rows).html
    assert caveat in report.render([*rows, Control("case-64", "quick", "cpu", "float32", 1.2, 0.9, 1.5)]).html


def test_errors_that_read_the_same_are_the_same() -> None:
    (case,) = tradeoff.cases(scored(("quick", 0.001, 0.35084089), ("slow", 0.01, 0.35084088)))
    assert [s.implementation for s in case.front] == ["quick"]


def test_the_error_against_a_textbook_is_taken_where_it_was_recorded(records: list[Record]) -> None:
    cases = tradeoff.cases(Report(records))
    assert {(c.dtype, c.measure) for c in cases} == {
        ("float32", tradeoff.MARGIN),
        ("bfloat16", tradeoff.RATIO),
    }
    half = next(c for c in cases if c.dtype == "bfloat16")
    assert {s.implementation: s.error for s in half.standings} == {
        "synthetic_eager": 0.8,
        "synthetic_flash": 1.3,
    }


def test_one_implementation_is_no_trade_off() -> None:
    assert tradeoff.cases(scored(("alone", 0.1, 0.1))) == []
    assert 'id="tradeoff"' not in report.render([timing("alone", [0.1] * 3, margin=0.1)]).html


def test_of_cases_that_differ_in_length_the_longest_is_drawn(records: list[Record]) -> None:
    facts = Report(records)
    drawn = tradeoff.chosen(facts, tradeoff.cases(facts))
    assert [c.case for c in drawn if c.dtype == "float32"] == [
        "synthetic-base-2048",
        "synthetic-gpt2",
        "synthetic-decode",
    ]


def test_names_in_a_legend_never_overlap() -> None:
    dots = [
        charts.ChartSeries(f"kernel_{i}", i, [charts.Point(1e-3, 0.1 + i * 1e-5, f"kernel {i}")])
        for i in range(12)
    ]
    chart = Document(
        charts.scatter_chart(
            dots, [], alt="a scatter", x_unit=units.seconds, y_unit=units.margin, x_label="time"
        )
    )
    places = sorted(
        (float(a["x"] or 0), float(a["y"] or 0))
        for tag, a in chart.elements
        if tag == "text" and a.get("class") == "name"
    )
    assert len(set(places)) == 12
    columns = {x: [y for other, y in places if other == x] for x, _ in places}
    assert all(b - a >= charts.LEGEND_PITCH for ys in columns.values() for a, b in pairwise(ys))
    assert min(y for _, y in places) > charts.HEIGHT  # under the plot
    named = [a for tag, a in chart.elements if tag == "g"]
    assert len(named) == 12
    assert chart.having("data-tip") == [f"kernel {i}" for i in range(12)]


def test_both_sections_stay_small_over_many_cases_and_implementations() -> None:
    """Six implementations in three dtypes on two series of five lengths and three cases that stand alone."""
    rng = np.random.default_rng(3)
    rows = [
        t
        for name in (f"implementation_{i}" for i in range(6))
        for dtype in ("float32", "float16", "bfloat16")
        for heads, lengths in [
            (1, (128, 256, 512, 1024, 2048)),
            (2, (64, 128, 256, 512, 1024)),
            *((h, (96,)) for h in range(3, 6)),
        ]
        for t in several(name, dtype, heads, lengths, float(rng.uniform(1, 3)))
    ]
    facts = Report(rows)
    size = sum(len(section.html(facts).encode()) for section in (scaling, tradeoff))
    assert len(tradeoff.cases(facts)) == 3 * 13
    assert size < SECTIONS_LIMIT


def several(name: str, dtype: str, heads: int, lengths: tuple[int, ...], slow: float) -> list[Timing]:
    series = growing(
        name, lambda n: [slow * heads * 1e-9 * n**2] * 3, lengths, dtype=dtype, margin=0.1 * slow
    )
    sizes = [{**t.sizes, "H": heads, "G": heads} for t in series]
    return [
        msgspec.structs.replace(t, case=f"heads-{heads}-{t.sizes['K']}", sizes=s)
        for t, s in zip(series, sizes, strict=True)
    ]


# -- Charts and units ---------------------------------------------------------------------------------------


def test_a_chart_has_a_mark_with_its_tooltip_for_every_point() -> None:
    points = [charts.Point(n, n * 1e-3, f"at {n} <ms>") for n in (1, 2, 4)]
    chart = Document(
        charts.line_chart([charts.ChartSeries("mine", 1, points)], alt="a chart", unit=units.seconds)
    )
    assert chart.having("data-tip") == ["at 1 <ms>", "at 2 <ms>", "at 4 <ms>"]
    assert "mine" in chart.text
    assert chart.having("aria-label", "svg") == ["a chart"]


def test_a_chart_of_nothing_is_nothing() -> None:
    assert charts.line_chart([], alt="", unit=units.seconds) == ""


def test_a_margin_over_one_is_drawn_at_the_line_and_counted() -> None:
    strip = charts.Strip("mine", [0.5, 3e6], "0.5", "tip", beyond=2)
    chart = Document(charts.strip_chart([strip], alt="", axis="margin"))
    assert "0.5 ✗ 2" in chart.text
    assert max(float(x) for x in chart.having("x", "use")) < charts.WIDTH


@pytest.mark.parametrize(
    ("values", "base", "ticks"),
    [
        ([1e-3, 1.0], 10, [1e-3, 1e-2, 1e-1, 1.0]),
        ([3.0, 4.0], 10, [2.0, 5.0]),
        ([5.0], 10, [2.0, 5.0, 10.0]),
        ([2**10, 2**13], 2, [2**10, 2**11, 2**12, 2**13]),
        ([2**10, 2**20], 2, [2**10, 2**12, 2**14, 2**16, 2**18, 2**20]),
    ],
)
def test_axes_have_round_ticks_around_the_values(values: list[float], base: int, ticks: list[float]) -> None:
    low, high, placed = svg.powers(values, base)
    assert placed == pytest.approx(ticks)
    assert low <= min(values) <= max(values) <= high


def test_a_legend_names_the_highest_line_first() -> None:
    lines = [
        charts.ChartSeries(name, 0, [charts.Point(1, y, ""), charts.Point(2, 10 * y, "")])
        for name, y in (("low", 1.0), ("high", 5.0), ("middle", 2.0))
    ]
    drawn = charts.line_chart(lines, alt="", unit=units.seconds)
    places = {
        n: (float(x), float(y))
        for x, y, n in re.findall(r'x="([\d.]+)" y="([\d.]+)" class="name">(\w+)<', drawn)
    }
    assert sorted(places, key=lambda name: places[name]) == ["high", "middle", "low"]


def test_charts_state_their_conclusion(page: report.Page) -> None:
    text = " ".join(re.sub(r"<[^>]+>", " ", page.html).split())
    assert re.search(r"Time of one call: synthetic_flash takes the least at [\d,]+, [\d.]+ m?s", text)
    assert re.search(r"Share of the measured roofline: synthetic_\w+ comes nearest at [\d,]+, [\d.]+ %", text)
    assert re.search(
        r"synthetic_flash needs the least at [\d,]+, [\d.]+ [KMG]iB; synthetic_\w+ the most", text
    )
    assert re.search(r"the largest error that keeps a law is [\d.]+ of its bound \(synthetic_\w+\)", text)


def test_a_family_without_a_law_that_holds_is_not_called_exact() -> None:
    def said(*verdicts: Verdict) -> str:
        return outcomes.margin_in_words(verdicts)

    assert said() == ""
    assert said(passing(outcome="failed", margin=None, exact=True)) == ""
    assert said(passing(margin=None, exact=True)) == "exact"
    assert said(passing(margin=None, exact=False)) == "holds"
    assert said(passing(margin=0.25), passing(margin=None, exact=True)) == "0.25"


def test_the_summary_tells_a_finding_once() -> None:
    known = {"outcome": "finding", "law": "zero_scale", "reason": "reports/findings/a"}
    rows = [passing(dtype=dtype, **known) for dtype in ("float32", "float64")]
    text = report.render(rows).markdown
    assert text.count("zero_scale") == 1


def test_shares_fill_their_plot() -> None:
    """Of a kernel at a tenth of the roofline the axis ends near a tenth, not at one."""
    line = charts.ChartSeries("slow", 0, [charts.Point(1, 0.05, "a"), charts.Point(2, 0.09, "b")])
    drawn = charts.line_chart([line], alt="", unit=units.percent, share=True)
    assert re.findall(r'class="tick" text-anchor="end">([^<]*)<', drawn)[-1] == "10 %"


def test_what_was_timed_has_the_first_colours() -> None:
    rows = [passing(implementation=f"layer_{i}") for i in range(20)] + [
        timing("kernel", [1.0]),
        timing("other", [1.0]),
    ]
    facts = Report(rows)
    assert [facts.colour(name) for name in ("kernel", "other", "layer_0")] == [0, 1, 2]


def test_calls_of_other_operations_are_folded_unless_something_is_wrong() -> None:
    def rows(outcome: str) -> list[Record]:
        other = [
            passing(implementation="gather", family="embedding"),
            passing(implementation="turn", family="positions"),
        ]
        calls = [
            passing(implementation=v.implementation, family="calls", law="no_writes", outcome=outcome)
            for v in other
        ]
        return [*other, *calls]

    held, broken = (verdicts.matrices(Report(rows(outcome))) for outcome in ("passed", "failed"))
    assert [matrix.families for matrix in held] == [["embedding"], ["positions"], ["calls"]]
    assert [matrix.open for matrix in held] == [True, True, False]
    assert [matrix.open for matrix in broken] == [True, True, True]
    assert report.render(rows("passed")).html.count('<details class="single folded">') == 1


def test_an_interval_that_says_nothing_is_not_printed() -> None:
    endless = Control("case-64", "mine", "cpu", "float32", 3.944, 0.0, 136917.086)
    run = next(r for r in synthetic().records() if isinstance(r, results.RunStart))
    html = report.render([run, endless]).html
    assert "136917" not in html
    assert statistics.TOO_FEW in html


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (units.seconds(1_500_000e-9), "1.50 ms"),
        (units.seconds(0.0162), "16.2 ms"),
        (units.seconds(0.99996), "1.00 s"),
        (units.seconds(0.0), "0 ns"),
        (units.seconds(3e-7), "300 ns"),
        (units.flops(1.55e11), "155 GFLOP/s"),
        (units.bandwidth(1.2e10), "12.0 GB/s"),
        (units.size(1_572_864), "1.50 MiB"),
        (units.size(512), "512 B"),
        (units.tick(units.seconds, 0.001), "1 ms"),
        (units.tick(units.seconds, 0.2), "200 ms"),
        (units.percent(0.613), "61 %"),
        (units.percent(0.0613), "6.1 %"),
        (units.margin(0.2), "0.20"),
        (units.margin(0.0004), "<0.001"),
        (units.margin(0.9996), "1.000"),
        (units.margin(1.0), "1.0"),
        (units.margin(1.0001), "1.001"),
        (units.margin(1.02), "1.020"),
        (units.margin(0.996), "0.996"),
        (units.margin(3.4e6), "3.4e+06"),
        (units.margin(1234.0), "1,234"),
        (units.margin(sys.float_info.max), "infinite"),
        (units.margin(0.0), "0"),
        (units.margin(None), ""),
        (units.ratio(1.5612), "1.56"),
        (units.ratio(24.3), "24.3"),
        (units.number_of(1, "law"), "1 law"),
        (units.number_of(1200, "family"), "1,200 families"),
        (units.fact(None), "not reported"),
        (units.fact(7.50), "7.5"),
    ],
)
def test_numbers_are_read_as_people_write_them(text: str, expected: str) -> None:
    assert text == expected


# -- Files, and bad input -----------------------------------------------------------------------------------


def test_write_makes_page_and_summary(records: list[Record], page: report.Page, tmp_path: Path) -> None:
    html, markdown = report.write(write(tmp_path / "results.jsonl", records), tmp_path / "a" / "folder")
    assert (html, markdown) == (
        tmp_path / "a" / "folder" / "index.html",
        tmp_path / "a" / "folder" / "summary.md",
    )
    assert (html.read_text(encoding="utf-8"), markdown.read_text(encoding="utf-8")) == page


def test_a_broken_file_is_named_with_its_line_and_nothing_is_written(
    records: list[Record], tmp_path: Path
) -> None:
    path = write(tmp_path / "results.jsonl", records)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:4], b"{broken\n", *lines[4:]]))
    with pytest.raises(results.ResultsError, match=r"results\.jsonl, line 5: "):
        report.write(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_index_lists_every_device_and_names_a_broken_file(records: list[Record], tmp_path: Path) -> None:
    write(tmp_path / "a-device" / "results.jsonl", records)
    (tmp_path / "broken-device").mkdir()
    (tmp_path / "broken-device" / "results.jsonl").write_text("{\n")
    document = Document(report.write_index(tmp_path).read_text(encoding="utf-8"))
    assert "a-device/index.html" in document.having("href")
    assert "2 of 7 implementations break a law" in document.text
    assert "results.jsonl, line 1: " in document.text


def test_the_index_compares_what_several_devices_timed(tmp_path: Path) -> None:
    quiet = Control("case-64", "quick", "cpu", "float32", 1.0, 0.999, 1.001)

    def device(name: str, *rows: Record) -> None:
        write(tmp_path / name / "results.jsonl", [synthetic().run_start(), quiet, *rows])

    device("a", timing("quick", [1e-3] * 3), timing("slow", [2e-3] * 3), timing("only-here", [5e-3] * 3))
    device("b", timing("quick", [4e-3] * 3), timing("slow", [3e-3] * 3), timing("quick", [], dtype="float64"))
    html = report.write_index(tmp_path).read_text(encoding="utf-8")
    words = " ".join(re.sub("<[^>]*>", " ", html).split())
    assert (
        "float32 forward quick 1.00 ms fastest 4.00 ms float32 forward slow 2.00 ms 3.00 ms fastest" in words
    )
    assert "only-here" not in words
    assert "float64" not in words.partition("The same case on several devices")[2]


def test_no_device_that_is_noisy_has_a_fastest(tmp_path: Path) -> None:
    for name, ratio in (("a", 1.0), ("b", 1.3)):
        rows = [
            timing("quick", [1e-3] * 3),
            timing("slow", [2e-3] * 3),
            Control("c", "quick", "cpu", "float32", ratio, 1.0, 1.0),
        ]
        write(tmp_path / name / "results.jsonl", [synthetic().run_start(), *rows])
    html = report.write_index(tmp_path).read_text(encoding="utf-8")
    assert html.count(">fastest</b>") == 1
    assert html.count("its A/A control strayed by more than 1 %") == 1


def test_the_index_of_nothing_says_so(tmp_path: Path) -> None:
    assert "There is no report yet" in report.write_index(tmp_path).read_text(encoding="utf-8")


def test_without_jinja_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UsageError, match=r"pip install jinja2"):
        report.render([])


def test_the_summary_is_a_table_of_verdicts_and_best_times(page: report.Page) -> None:
    assert page.markdown.startswith("# Synthetic 9000")
    assert "| `synthetic_textbook` | cpu | float64 | ✓ 0." in page.markdown
    assert "| ✗ causal_prefix (margin 3.4e+06, + 1 more) |" in page.markdown
    assert re.search(r"\| synthetic-gpt2 \|.*\| `synthetic_flash` \| [\d.]+ ms \|", page.markdown)
    assert "length^2.0" in page.markdown


def planted(name: str, kind: str, *laws: str, **more: Any) -> Planted:
    kills = [Kill(law, "masking", 3, 0.1) for law in laws]
    return Planted(name=name, kind=kind, operation="attention", dtype="float32", sentence=f"the bug of {name}", kills=kills,
                   matrix=True, examples=20, seconds=0.4, profile="quick", **more)  # fmt: skip


PLANTED = [
    planted("mutant-a", "mutant", "causal_prefix", "mask_broadcasts", threads=["some/library#12"],
            sizes={"B": 1, "H": 1, "G": 1, "Q": 1, "K": 2, "D": 1, "E": 1}),
    planted("mutant-survivor", "mutant"),
    planted("control-c", "control"),
]  # fmt: skip


def test_the_power_of_the_laws_stands_on_the_page(records: list[Record]) -> None:
    made = report.render([*records, *PLANTED])
    assert "1 of 2 mutants killed" in made.html
    assert "some/library#12" in made.html
    assert 'class="survived"' in made.html
    assert made.html.count('class="kills"') == 1
    assert "mutant-survivor" in made.markdown
    assert "none accused" in made.markdown


def test_a_page_without_planted_bugs_says_nothing_of_power(page: report.Page) -> None:
    assert "How strong the laws are" not in page.html


def test_the_power_file_beside_the_devices_is_read(records: list[Record], tmp_path: Path) -> None:
    folder = tmp_path / "a-device"
    for path, contents in ((folder / "results.jsonl", records), (tmp_path / report.POWER, PLANTED)):
        with Writer(path) as writer:
            for record in contents:
                writer.append(record)
    made, _ = report.write(folder / "results.jsonl", folder)
    assert "1 of 2 mutants killed" in made.read_text()
