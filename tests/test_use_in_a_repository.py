"""docs/use-it-in-your-repository.md is true: its files make a repository, and its commands are run in it in their order."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "use-it-in-your-repository.md"
PARTS = re.compile(
    r"^(## [^\n]*)$|^<!-- file: (\S+) -->\n```\w+\n(.*?)^```|^```console\n(.*?)^```", re.DOTALL | re.MULTILINE
)
EXIT = re.compile(r"# exit code (\d)")
# What is printed after a line of the page; a line is named by its words, or a pattern.
SAID = {
    "qkverify init mykernel/fused.py:fused": "wrote          qkverify_adapter.py",
    "qkverify init": "qkverify verify mykernel/attn.py:attention",
    "qkverify verify mykernel/attn.py:attention --law causal_[*]*": "selected",
    "qkverify verify": "with pyproject.toml: profile glance, dtypes float32",
    "qkverify verify qkverify_adapter.py": "mismatched_sizes_raise",
    "pytest --pyargs qkverify.properties --law softmax --skip-law rows_[*]*": "deselected",
    "pytest --pyargs qkverify.properties --implementation qkverify_adapter.py --law contract": "1 xfailed",
    "qkverify verify mykernel/attn.py:attention --own-laws qkverify_laws.py --law twice_the_values": "1 law",
    "qkverify compare * --format markdown": "| `transformer-base-128` |",
    "qkverify compare *": "transformer-base-128",
    "qkverify report --run *": "reports/attn-attention/index.html",
}


@dataclass(frozen=True)
class Step:
    """A file to write, or a command to run."""

    section: str
    file: str = ""
    text: str = ""

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)

    @property
    def exit_code(self) -> int:
        said = EXIT.search(self.text)
        return int(said[1]) if said else 0


def steps() -> Iterator[Step]:
    section = ""
    for heading, file, text, commands in PARTS.findall(PAGE.read_text(encoding="utf-8")):
        section = heading or section
        if file:
            yield Step(section, file, text)
        for line in commands.splitlines():
            yield Step(section, text=line.removeprefix("$ "))


FOLLOWED: set[int] = set()  # numbers of the steps that were taken in this process
SECTIONS = list(dict.fromkeys(step.section for step in steps()))
TIMED = ("## 7", "## 8")  # these need torch, and half a minute


def run(words: list[str], cwd: Path, *, glance: bool) -> subprocess.CompletedProcess[str]:
    """A command of the page, cut short: few examples, little time, one process for timing, no torch but where it is named."""
    program, *arguments = words
    if program == "qkverify":
        short = {
            "verify": ["--dtype", "float32"],
            "bench": ["--dtype", "float32", "--processes", "1", "--budget", "3s"],
            "report": ["--budget", "10s"],
        }
        arguments += short.get(arguments[0], [])
        arguments += ["--profile", "glance"] if glance and arguments[0] == "verify" else []
        words = [sys.executable, "-m", "qkverify.cli", *arguments]
    elif program == "pytest":
        words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
        words += ["--dtype", "float32"] if "--pyargs" in words else []
    else:
        words = [sys.executable, *arguments]
    prefixes = ("PYTEST_", "QKVERIFY_", "HYPOTHESIS_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    environment |= {"QKVERIFY_SEED": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def git(*arguments: str, cwd: Path) -> None:
    who = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org")
    subprocess.run(["git", *who, *arguments], cwd=cwd, check=True, capture_output=True)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the page's files, but for those that the page writes later."""
    folder = tmp_path_factory.mktemp("foreign")
    git("init", "-q", cwd=folder)
    (folder / "mykernel").mkdir()
    (folder / "tests").mkdir()
    (folder / "mykernel" / "__init__.py").touch()
    return folder


def follow(step: Step, folder: Path) -> None:
    if step.file:
        (folder / step.file).write_text(step.text, encoding="utf-8")
        return
    if "HEAD:" in step.text:
        git("add", "-A", cwd=folder)
        git("commit", "-qm", "the first run", "--allow-empty", cwd=folder)
    line = " ".join(step.words)
    finds = line == "qkverify verify qkverify_adapter.py"  # five examples may miss what it finds
    done = run(step.words, folder, glance=step.exit_code == 0 and not finds)
    said = done.stdout + done.stderr
    assert done.returncode == step.exit_code, f"{step.text}\n{said[-3000:]}"
    assert "Traceback" not in said
    expected = next((words for pattern, words in SAID.items() if fnmatchcase(line, pattern)), "")
    assert expected in said, f"{step.text}\n{said[-3000:]}"


@pytest.mark.slow
@pytest.mark.xdist_group("use-in-a-repository")
@pytest.mark.parametrize("section", SECTIONS)
def test_the_commands_of_a_section_do_what_the_page_says(section: str, repository: Path) -> None:
    """In the page's order; a section alone needs the files of those before it, which are written first."""
    if section.startswith(TIMED):
        pytest.importorskip("torch")
    before = SECTIONS[: SECTIONS.index(section)]
    for number, step in enumerate(steps()):
        needed = step.section in before and number not in FOLLOWED and (step.file or step.words[1] == "init")
        if needed or step.section == section:
            FOLLOWED.add(number)
            follow(step, repository)
    porcelain = subprocess.run(
        ["git", "status", "--short"], cwd=repository, capture_output=True, text=True, check=True
    )
    assert ".qkverify" not in porcelain.stdout


def test_every_kind_of_line_is_checked_for_what_it_says() -> None:
    """A key of SAID that no line of the page has would check nothing."""
    lines = [" ".join(step.words) for step in steps() if not step.file]
    assert len(lines) > 15
    for pattern in SAID:
        assert any(fnmatchcase(line, pattern) for line in lines), pattern
