"""A report of one's own kernel, from a repository that has nothing to do with this one; and the comment of a pull request."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qkverify import results
from qkverify.cli import compare_markdown, own_report
from qkverify.errors import UsageError
from qkverify.report import overview
from qkverify.report.model import Report
from qkverify.results import Control, Timing, of_kind
from qkverify.timing import comparison

KERNEL = '''
import numpy as np


def attention(query, key, value):
    """(B,H,Q,D), (B,H,K,D), (B,H,K,E) -> (B,H,Q,E)"""
    scores = query @ np.swapaxes(key, -1, -2) * query.dtype.type(query.shape[-1] ** -0.5)
    weights = np.exp(scores - scores.max(-1, keepdims=True, initial=-np.inf))
    return weights @ value / weights.sum(-1, keepdims=True)
'''


def qkverify(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qkverify.cli", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(KERNEL, encoding="utf-8")
    return tmp_path


@pytest.mark.slow
def test_a_kernel_gets_a_page_of_its_own_beside_its_baseline(repository: Path) -> None:
    done = qkverify("report", "--run", "mine.py:attention", "--against", "numpy_tiled", "--profile", "glance",
                    "--dtype", "float32", "--budget", "6s", cwd=repository)  # fmt: skip
    place = repository / "reports" / "mine-attention"
    assert done.returncode in (0, 1), done.stderr  # what it breaks is its own affair
    assert "reports/mine-attention/index.html" in done.stdout
    facts = Report(results.read(place / "results.jsonl"))
    assert set(facts.judged) == {"mine:attention", "numpy_tiled"}
    assert {verdict.dtype for verdict in facts.verdicts} == {"float32"}
    (table,) = overview.overviews(facts)
    assert table.baseline == "numpy_tiled"
    first = (place / "summary.md").read_text(encoding="utf-8").splitlines()
    assert first[0].startswith("# mine:attention against numpy_tiled, ")
    assert any("`mine:attention`" in line for line in first[:40])
    assert not facts.pictures
    again = qkverify("report", str(place.relative_to(repository)), cwd=repository)
    assert again.returncode in (0, 1), again.stderr
    assert "mine:attention against numpy_tiled" in (place / "index.html").read_text(encoding="utf-8")
    assert "../findings/" not in (place / "index.html").read_text(encoding="utf-8")  # none stands there


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mine.py:attention"], "--run makes one"),
        (["--run", "--against", "numpy_tiled"], "name it, as in qkverify report --run mine.py:attention --against numpy_tiled"),
        (["--run", "mine.py:attention", "a-folder"], "a-folder is no implementation"),
        (["--run", "mine.py:attention", "--against", "torch_sdpa"], "means several implementations"),
        (["--run", "--dtype", "float32"], "name them"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_with_a_remedy(
    repository: Path, arguments: list[str], said: str
) -> None:
    if "torch_sdpa" in arguments:
        pytest.importorskip("torch")
    done = qkverify("report", *arguments, cwd=repository)
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stderr
    assert not (repository / "reports").exists()


def test_a_folder_is_a_folder_and_a_target_a_target(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    (repository / "numpy_tiled").mkdir()  # a folder of this name is meant, where there is one
    assert own_report.folder_or_targets(["numpy_tiled"]) == (Path("numpy_tiled"), ())
    assert own_report.folder_or_targets(["numpy_textbook"]) == (None, ("numpy_textbook",))
    assert own_report.folder_or_targets(["mine.py", "a.b:c"]) == (None, ("mine.py", "a.b:c"))
    assert own_report.folder_or_targets([]) == (None, ())
    with pytest.raises(UsageError):
        own_report.folder_or_targets(["reports/one", "reports/two"])


def test_without_a_baseline_it_is_the_default_of_the_platform_but_of_itself() -> None:
    pytest.importorskip("torch")
    requested = own_report.gathered(["numpy_tiled"], "", ["cpu"], True)
    assert requested
    assert requested.everything == ("numpy_tiled", "torch_sdpa-flash")
    itself = own_report.gathered(["torch_sdpa-flash"], "", ["cpu"], True)
    assert itself
    assert itself.everything == ("torch_sdpa-flash",)


# -- The comment of a pull request -------------------------------------------------------------------------


def timing(name: str, factor: float, case: str, processes: int = 3, **changes: object) -> Timing:
    seconds = [factor * 1e-3 * (1 + 0.001 * (i % 4)) for i in range(4 * processes)]
    facts = {"case": case, "sizes": {"B": 1, "H": 1, "G": 1, "Q": 8, "K": 8, "D": 4, "E": 4}, "causal": True, "options": "",
             "implementation": name, "device": "cpu", "dtype": "float32", "direction": "forward", "clock": "host",
             "seconds": seconds, "rounds": list(range(len(seconds))), "processes": [i // 4 for i in range(len(seconds))],
             "flops": 1, "bytes": 1}  # fmt: skip
    return Timing(**{**facts, **changes})


def compared(factor: float, *, processes: int = 3, **changes: object) -> comparison.Result:
    records = [
        made
        for case in ("short", "long")
        for made in (
            timing("mine", factor, case, processes, **changes),
            timing("base", 1.0, case, processes),
            Control(case, "base", "cpu", "float32", 1.0, 0.997, 1.003),
        )
    ]
    return comparison.implementations(comparison.side_of(records), "mine", "base")


@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (1.5, "🔴 **1.50 × slower** over 2 cases (95 %: 1.50 .. 1.50)."),
        (0.5, "🟢 **2.00 × faster** over 2 cases (95 %: 2.00 .. 2.00)."),
        (1.0, "⚪ **The same time** over 2 cases (95 %: 1.00 .. 1.00)."),
    ],
)
def test_a_comment_begins_with_the_answer(factor: float, said: str) -> None:
    lines = compare_markdown.comment(compared(factor), "mine.py:attention", "base").splitlines()
    assert lines[0] == "### `mine.py:attention` against `base`"
    assert lines[2] == said
    assert sum(line.startswith("| `") for line in lines) == 2


def test_a_comment_without_a_common_answer_counts_its_cases() -> None:
    text = compare_markdown.comment(compared(8.0, rounds=[-1] * 12), "mine", "base")
    assert "**2 slower** over 2 cases." in text
    assert "nan" not in text
    assert "too few processes" in text


def test_the_command_prints_markdown_alone_on_standard_output(tmp_path: Path) -> None:
    with results.Writer(tmp_path / "times.jsonl") as writer:
        for record in (
            timing("mine", 1.5, "a"),
            timing("base", 1.0, "a"),
            Control("a", "base", "cpu", "float32", 1.0, 0.997, 1.003),
        ):
            writer.append(record)
    assert len(of_kind(results.read(tmp_path / "times.jsonl"), Timing)) == 2
    done = qkverify(
        "compare", "mine", "base", "--results", "times.jsonl", "--format", "markdown", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("### `mine` against `base`\n")
    unknown = qkverify(
        "compare", "mine", "base", "--results", "times.jsonl", "--format", "html", cwd=tmp_path
    )
    assert unknown.returncode == 2
    assert "markdown" in unknown.stderr
