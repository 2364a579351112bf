"""The README is short, and true: its picture, its commands, its examples and its figures."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer.main

from qkverify.cli.main import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PICTURE = ROOT / "docs" / "pictures" / "report.png"
LONGEST_README = 150  # lines
LARGEST_PICTURE = 200_000  # bytes
NUMBER = re.compile(r"(?<=replay )\w+|(?<=/)\w+(?=\.py)|-?\d+(\.\d+)?(e[-+]\d+)?")


def example(name: str, text: str = README) -> str:
    """The code block that follows a marker."""
    return re.split(r"```\w*\n", text.split(f"<!-- example: {name} -->\n")[1], maxsplit=1)[1].split("```")[0]


def size_of(png: bytes) -> tuple[int, int]:
    """Width and height from the header of a PNG file. Raises AssertionError if it is none."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) < LONGEST_README


def test_the_picture_is_a_small_png_that_the_readme_shows() -> None:
    assert "](docs/pictures/report.png)" in README
    assert PICTURE.stat().st_size < LARGEST_PICTURE
    width, height = size_of(PICTURE.read_bytes())
    assert width > height > 600


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium (apt install chromium)")
def test_the_picture_can_be_taken_again(tmp_path: Path) -> None:
    page, picture = tmp_path / "page.html", tmp_path / "picture.png"
    page.write_text("<h1>a report</h1>")
    script = ROOT / "docs" / "screenshot.py"
    command = [sys.executable, str(script), "--page", str(page), "--output", str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert size_of(picture.read_bytes()) == size_of(PICTURE.read_bytes())


def test_commands_exist_with_their_options() -> None:
    """Of qkverify each command and option, of make each target."""
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    assert {words[0] for words in lines} == {"make", "pip", "qkverify", "pytest"}
    commands = getattr(typer.main.get_command(app), "commands")  # noqa: B009  (click's group, which has no type here)
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for program, name, *words in lines:
        if program == "make":
            assert name in targets
        elif program == "qkverify":
            options = {option for parameter in commands[name].params for option in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= options, name


def test_the_bug_of_the_opening_shows(capsys: pytest.CaptureFixture[str]) -> None:
    """In the version of torch that the finding was recorded with; another one may have mended it."""
    torch = pytest.importorskip("torch", reason="needs torch: pip install 'qkverify[torch]'")
    recorded = re.search(r"^torch==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert recorded
    if torch.__version__.partition("+")[0] != recorded[1]:
        pytest.skip(f"recorded with torch {recorded[1]}, and this is {torch.__version__}")
    code = example("finding")
    results = {}
    for backend in ("FLASH_ATTENTION", "MATH"):
        exec(compile(code.replace("FLASH_ATTENTION", backend), "README.md", "exec"), {})
        match = re.search(r"\d+", capsys.readouterr().out)
        assert match
        results[backend] = int(match[0])
    assert results == {"FLASH_ATTENTION": 256, "MATH": 258}


def test_the_failure_is_what_is_printed(tmp_path: Path) -> None:
    """But for the numbers: which of two smallest problems is found is chance."""
    page = (ROOT / "docs" / "verify-a-function.md").read_text(encoding="utf-8")
    shown = example("failure")
    assert example("failure", page) == shown
    (tmp_path / "topleft.py").write_text(example("topleft", page))
    words = ["verify", "topleft.py", "--law", "causal_alignment_when_lengths_differ", "--profile", "quick"]
    assert f"`qkverify {shlex.join(words[:4])}` prints" in page
    done = subprocess.run(
        [sys.executable, "-m", "qkverify.cli", *words], cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**os.environ, "QKVERIFY_SEED": "1"},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    printed = done.stdout[done.stdout.index(shown.split(":")[0] + ":") :]
    assert [NUMBER.sub("#", line) for line in printed.splitlines()[: len(shown.splitlines())]] == [
        NUMBER.sub("#", line) for line in shown.splitlines()
    ]


def test_the_planted_bugs_are_as_many_as_it_says() -> None:
    power = ROOT / "reports" / "power.jsonl"
    if not power.is_file():
        pytest.skip("a source distribution has no reports")
    records = [json.loads(line) for line in power.read_text().splitlines()]
    said = re.search(r"more than (\d+) known bugs", README)
    assert said
    assert sum(record.get("kind") == "mutant" for record in records) > int(said[1])


def test_installation_is_honest() -> None:
    """No line installs a package called qkverify from an index, where there is none."""
    assert "on no package index yet" in README
    for line in README.splitlines():
        if "pip install" in line:
            assert "/path/to/qkverify" in line


def test_every_implementation_of_attention_is_described() -> None:
    if not find_spec("torch"):
        pytest.skip("needs torch: pip install 'qkverify[torch]'")
    from qkverify.contract.registry import load_folder

    page = (ROOT / "docs" / "what-is-verified.md").read_text(encoding="utf-8")
    names = {
        implementation.name for implementation in load_folder() if implementation.operation == "attention"
    }
    assert len(names) > 5
    assert {name for name in names if f"`{name}`" not in page} == set()


def test_every_finding_is_described() -> None:
    page = (ROOT / "docs" / "what-is-verified.md").read_text(encoding="utf-8")
    folders = {path.name for path in (ROOT / "reports" / "findings").iterdir()}
    assert len(folders) > 5
    assert {name for name in folders if f"findings/{name}/README.md" not in page} == set()
