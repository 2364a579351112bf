"""Whoever can run a workload is timed on it: findings and broken laws stand beside the time, and bar it where they apply."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from qkverify.cli import bench_command, console_timings
from qkverify.contract import DTYPES, Finding, Implementation, describe, registry
from qkverify.problem import traits
from qkverify.report import finding_links, timings
from qkverify.report.model import Report
from qkverify.report.sections import speed
from qkverify.results import Control, Counterexample, Mark, Timing, Verdict
from qkverify.timing import comparison, marks, untimed
from qkverify.timing.benchmark_cases import BenchmarkCase
from qkverify.timing.marks import Known, against
from qkverify.timing.workloads import Workload, named
from qkverify.verification.checking import law_book

SHORT = Workload(name="short", source="made up", heads=2, key_size=8, queries=24)
FOLDER = "reports/findings/of-a-test"


def attention(query: Any, key: Any, value: Any, *, causal: bool = False, window: Any = None) -> Any:
    raise AssertionError("called")


def implementation(**declared: Any) -> Implementation:
    return describe(attention, name="mine", arrays="numpy", dtypes=DTYPES, **declared)


def cell(
    workload: Workload = SHORT, direction: Any = "forward", dtype: str = "float32", **declared: Any
) -> BenchmarkCase:
    return BenchmarkCase(workload, implementation(**declared), "cpu", dtype, direction)


def verdict(law: str, outcome: str = "failed", shown: list[str] | None = None, family: str = "") -> Verdict:
    known = next((candidate for candidate in law_book() if candidate.name == law), None)
    example = None if shown is None else Counterexample("", "", "", "", "", None, "", "", traits=shown)
    return Verdict(
        law, family or (known.family if known else "attention"), "A sentence.", False, "mine", "cpu", "float32",
        outcome, counterexample=example,  # type: ignore[arg-type]
    )  # fmt: skip


def barred(cell: BenchmarkCase, *verdicts: Verdict) -> str | None:
    return against(Known(verdicts).marks(cell))


# What is torch's own


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["torch_sdpa-flash", "torch_flex-eager"])
def test_torchs_kernels_are_timed_forward_in_every_dtype_with_their_findings_beside(
    name: str, dtype: str
) -> None:
    pytest.importorskip("torch", reason="torch is optional")
    (implementation,) = registry.find(name)
    for verdicts in (
        None,
        [msgspec.structs.replace(verdict("one_hot_lookup", "passed"), implementation=name, dtype=dtype)],
    ):
        marks = Known(verdicts).marks(
            BenchmarkCase(named("gpt2-small"), implementation, "cpu", dtype, "forward")
        )
        assert against(marks) is None
        assert name != "torch_sdpa-flash" or {m.kind for m in marks} == {"finding"}
        assert against(marks, lawful_only=True) if marks else True


def test_a_finding_bars_the_direction_dtype_and_sizes_that_it_speaks_of() -> None:
    pytest.importorskip("torch", reason="torch is optional")
    (flash,) = registry.find("torch_sdpa-flash")

    def why(workload: Workload, dtype: str, direction: Any) -> str | None:
        return against(Known().marks(BenchmarkCase(workload, flash, "cpu", dtype, direction)))

    long, one_block = named("gpt2-small"), dataclasses.replace(SHORT, queries=8)
    assert "accumulates gradients" in (why(long, "bfloat16", "forward+backward") or "")
    assert why(long, "bfloat16", "forward") is why(long, "float32", "forward+backward") is None
    assert why(one_block, "bfloat16", "forward+backward") is None


def test_every_finding_says_what_is_wrong_as_its_folder_does() -> None:
    root = Path(__file__).parents[2]
    findings = {
        k
        for implementation in registry.load_folder()
        for k in implementation.findings.values()
        if implementation.operation == "attention"
    }
    assert findings
    for known in findings:
        title = (root / known.folder / "README.md").read_text().partition("\n")[0].removeprefix("# ")
        assert known.sentence == title


# A finding of one's own


def test_a_finding_bars_where_it_can_show_and_stands_beside_elsewhere() -> None:
    capped = Finding(FOLDER, when=lambda p: p.sizes["K"] > 100, sentence="long ones are wrong")
    known = {"findings": {"agrees_with_reference": capped}}
    long = dataclasses.replace(SHORT, queries=128)
    (beside,), (bars,) = Known().marks(cell(**known)), Known().marks(cell(long, **known))
    assert (beside.bars, bars.bars) == (False, True)
    assert (beside.laws, beside.folder, beside.kind) == (["agrees_with_reference"], FOLDER, "finding")
    assert against([bars]) == f"known failure: long ones are wrong, see {FOLDER}"


def test_a_finding_that_says_not_when_it_shows_bars_what_its_law_speaks_of() -> None:
    always = {"findings": {"agrees_with_reference[bfloat16]": Finding(FOLDER)}}
    assert against(Known().marks(cell(dtype="bfloat16", **always)))
    assert Known().marks(cell(**always)) == []
    of_an_option = {"findings": {"log_sum_exp_is_right": Finding(FOLDER)}}
    (beside,) = Known().marks(cell(**of_an_option))
    assert not beside.bars
    of_gradients = {"findings": {"vjp_agrees_with_reference": Finding(FOLDER)}}
    assert Known().marks(cell(**of_gradients)) == []
    assert against(Known().marks(cell(direction="forward+backward", **of_gradients)))


def test_what_names_the_place_most_closely_counts() -> None:
    general, close = Finding(FOLDER), Finding("elsewhere")
    declared = implementation(findings={"a_law": general, "a_law[cpu-float16]": close})
    assert declared.findings_at("cpu", "float16") == {"a_law": close}
    assert declared.findings_at("cpu", "float32") == {"a_law": general}
    assert implementation(findings={"a_law[cuda]": general}).findings_at("cpu", "float32") == {}


# Broken laws


def test_a_law_about_gradients_says_nothing_of_forward_alone() -> None:
    broken = verdict("vjp_agrees_with_reference", shown=[])
    assert Known([broken]).marks(cell()) == []
    assert "breaks 1 law: vjp_agrees_with_reference" in (barred(cell(direction="backward"), broken) or "")


@pytest.mark.parametrize(
    ("law", "shown"),
    [
        ("window_edges_are_exact", ["window"]),  # the law's own need
        ("agrees_with_reference", ["mask"]),  # what the smallest example still has
        ("agrees_with_reference", ["grouped heads"]),
        ("causal_alignment_when_lengths_differ", ["causal", "positions of unequal lengths"]),
        ("nan_goes_where_it_must", ["NaN or infinity"]),
        ("mismatched_sizes_raise", ["sizes that do not fit"]),
        ("inputs_are_not_written", []),  # how calls behave: the numbers are judged by the output check
    ],
)
def test_a_broken_law_stands_beside_the_time_of_a_workload_that_cannot_meet_it(
    law: str, shown: list[str]
) -> None:
    broken = verdict(law, shown=shown)
    (mark,) = Known([broken, verdict("one_hot_lookup", "passed")]).marks(cell())
    assert (mark.kind, mark.laws, mark.bars) == ("broken", [law], False)
    assert against([mark]) is None
    assert law in (against([mark], lawful_only=True) or "")
    assert marks.brief([mark]) == "broken: 1 law"


def test_a_broken_law_bars_the_workload_that_meets_it() -> None:
    windowed = dataclasses.replace(SHORT, window=(3, 0))
    unequal = dataclasses.replace(SHORT, keys=48)
    assert barred(cell(windowed), verdict("window_edges_are_exact", shown=["window"]))
    assert barred(
        cell(unequal), verdict("agrees_with_reference", shown=["causal", "positions of unequal lengths"])
    )
    assert barred(cell(), verdict("agrees_with_reference", shown=[]))
    assert barred(cell(), verdict("agrees_with_reference", "crashed"))  # nobody knows on what
    assert barred(cell(), verdict("agrees_with_reference", "error")) is None  # ours


def test_what_was_not_verified_is_said_and_what_refuses_everything_is_not_offered() -> None:
    (mark,) = Known([]).marks(cell())
    assert (mark.kind, mark.bars) == ("not verified", False)
    assert against([mark], lawful_only=True) == "not verified in this run"
    refuses = msgspec.structs.replace(verdict("one_hot_lookup", "not offered"), reason="half precision only")
    assert Known([refuses]).refused(cell()) == "not offered: half precision only"
    assert Known([refuses, verdict("one_hot_lookup", "passed")]).refused(cell()) is None


# Traits


def test_traits_are_what_a_plain_call_has_not() -> None:
    plain = SHORT.problem("float32").replace(causal=False)
    one_head = plain.replace(query=plain.query[:, :1], key=plain.key[:, :1], value=plain.value[:, :1])
    assert traits.of([one_head]) == []
    assert traits.of([one_head, "no problem"]) == []
    assert traits.of([one_head.replace(key=one_head.key * np.float32(1e4))]) == ["large numbers"]
    assert traits.of([one_head.replace(key=one_head.key * np.float32(np.nan))]) == ["NaN or infinity"]
    assert traits.of([one_head.replace(value=one_head.value[:, :, 1:])]) == ["sizes that do not fit"]
    assert traits.of([one_head.replace(query=one_head.query[:, :, :0])]) == ["an axis without elements"]
    assert traits.of([one_head.replace(query=one_head.query[:, :, :9], causal=True)]) == [
        "causal", "positions of unequal lengths",
    ]  # fmt: skip
    assert traits.of([plain.replace(key=plain.key[:, :1], value=plain.value[:, :1])]) == [
        "grouped heads",
        "several heads",
    ]


def test_no_workload_has_numbers_that_are_not_ordinary() -> None:
    assert traits.of_shape(SHORT.outline("float32")) == set(traits.of([SHORT.problem("float32")]))


# Who is fastest


def timing(name: str, reason: str = "", seconds: float = 0.0, known: list[Mark] | None = None) -> Timing:
    times = [seconds] * 3 if seconds else []
    return Timing(
        case="c", sizes={"B": 1, "H": 1, "G": 1, "Q": 4, "K": 4, "D": 2, "E": 2}, causal=True, options="",
        implementation=name, device="cpu", dtype="float32", direction="forward", clock="host", seconds=times,
        rounds=list(range(len(times))), flops=1, bytes=1, reason=reason, marks=known or [],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "left_out"),
    [
        ("known failure: a sentence, see there", True),
        ("breaks 2 laws: one, other", True),
        ("the time budget had run out", True),
        ("while its group was timed, its process ended with status 7", True),
        ("not verified in this run", True),
        ("not offered: gradients", False),
        ("no CUDA device", False),
        ("raised ValueError: no", False),
        ("the timed call's output is wrong: 3 times its bound away from the reference", False),
    ],
)
def test_left_out_is_who_could_run_and_has_no_time(reason: str, left_out: bool) -> None:
    timings = [timing("fast", seconds=1.0), timing("other", reason)]
    assert untimed.names(untimed.left_out(timings)) == ("other" if left_out else "")


@pytest.mark.parametrize(
    "reason",
    ["raised ValueError: no", "the timed call's output is wrong: far away", "a call in 1 ns would be fast"],
)
def test_what_failed_when_it_was_timed_fails_a_run(reason: str) -> None:
    assert [
        t.implementation for t in untimed.refused([timing("fast", seconds=1.0), timing("other", reason)])
    ] == ["other"]
    assert untimed.refused([timing("other", "not offered: gradients")]) == []


SCREEN = [
    timing("fast", seconds=1.0, known=[Mark("finding", ["a_law"], "it loses NaN", FOLDER)]),
    timing("slow", seconds=9.0, known=[Mark("broken", ["one", "other"], "one (A sentence.), other")]),
]


@pytest.mark.parametrize("reason", ["", "known failure: it accumulates, see there"])
def test_the_screen_names_the_fastest_only_of_all_and_says_what_is_known(
    reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    every = [*SCREEN, *([timing("barred", reason)] if reason else [])]
    side = comparison.side_of([*every, Control("c", "fast", "cpu", "float32", 1.0, 0.999, 1.001)])
    console_timings.bench(bench_command.BenchResult(Path("x"), side, [], every))
    said = " ".join(capsys.readouterr().out.split())
    assert "1 known failure" in said
    assert "broken: 2 laws" in said
    assert f"fast: known failure: it loses NaN, see {FOLDER} in the source of qkverify" in said
    assert ("fastest of those timed" in said) == bool(reason)
    assert ("not timed, although it can run here: barred" in said) == bool(reason)
    assert "slower: 9.000 x" in said


def test_the_page_and_the_summary_say_the_same() -> None:
    barred = timing("barred", "known failure: it accumulates, see there")
    told = Report([*SCREEN, barred])
    first, second, last = timings.lines([*SCREEN, barred], told)
    assert (first.word, second.word, last.timed) == ("fastest of those timed", "slower", None)
    assert timings.lines(SCREEN, Report(SCREEN))[0].word != "fastest of those timed"
    text = speed.markdown(told)
    assert "`fast` (1 known failure)" in text
    assert "barred" in text
    html = speed.html(told)
    assert "Could run here and was left out: forward: barred" in html
    assert "1 known failure" in html


def test_a_finding_is_linked_where_its_folder_is_and_named_where_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = "reports/findings/torch-cpu-flash-counts-keys-by-the-values"
    monkeypatch.chdir(tmp_path)
    assert Path(finding_links.place_of(folder)).is_dir()
    monkeypatch.setattr(finding_links, "CHECKOUT", tmp_path)  # as installed from a wheel
    monkeypatch.setattr(finding_links, "repository", lambda: "")
    assert finding_links.place_of(folder) == f"{folder} in the source of qkverify"
    monkeypatch.setattr(finding_links, "repository", lambda: "https://example.org/q")
    assert finding_links.place_of(folder) == f"https://example.org/q/tree/main/{folder}"
