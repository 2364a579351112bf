"""The documentation says what is so: generated blocks are up to date, links lead somewhere, commands and code exist."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from qkverify.cli.main import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^(<!-- file: [^\n]*\n)?```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def generate(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(DOCS / "generate.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def fences(language: str) -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for fence in FENCE.finditer(page.read_text(encoding="utf-8")):
            if fence[2] == language and not fence[1]:  # the files of a repository: test_use_in_a_repository
                yield page, fence[3]


def test_there_are_the_pages_that_the_index_names() -> None:
    assert {page.name for page in PAGES} == {
        "index.md",
        *re.findall(r"\]\(([\w-]+\.md)\)", (DOCS / "index.md").read_text()),
    }


def test_every_generated_block_is_what_its_code_makes() -> None:
    """Blocks made from results are compared where the results are those that they name."""
    done = generate("--check")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_a_number_that_was_changed_by_hand_is_found_and_made_again(tmp_path: Path) -> None:
    folder = shutil.copytree(DOCS, tmp_path / "docs")
    page, picture = folder / "bounds.md", folder / "pictures" / "sums.svg"
    original, drawn = page.read_text(encoding="utf-8"), picture.read_text(encoding="utf-8")
    assert "2^-53" in original
    page.write_text(original.replace("2^-53", "2^-54"), encoding="utf-8")
    picture.write_text(drawn.replace("<path", "<line", 1), encoding="utf-8")
    done = generate("--check", "--folder", str(folder))
    assert done.returncode == 1
    assert "bounds.md: formats is not what its code makes" in done.stdout
    assert "bounds.md: sums is not what its code makes" in done.stdout
    generate("--folder", str(folder))
    assert page.read_text(encoding="utf-8").count("2^-53") == original.count(
        "2^-53"
    )  # a new run may change other blocks
    assert picture.read_text(encoding="utf-8") == drawn


def test_a_marker_without_a_function_is_found(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("<!-- generated: no-such-block -->\n<!-- end -->\n", encoding="utf-8")
    done = generate("--check", "--folder", str(tmp_path))
    assert done.returncode == 1
    assert "no function makes the block no-such-block; there are" in done.stdout


def test_results_that_are_newer_accuse_no_page(tmp_path: Path) -> None:
    """A new run on this machine changes reports/ and leaves the pages: that is said, and is no failure."""
    text = "<!-- generated: reports from 000000000000 -->\nold\n<!-- end -->\n"
    (tmp_path / "page.md").write_text(text, encoding="utf-8")
    done = generate("--check", "--folder", str(tmp_path))
    assert done.returncode == 0
    assert "page.md: reports " in done.stdout


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.stem
)
def test_links_lead_somewhere(page: Path) -> None:
    """To a file of the checkout, and to a heading of it; nothing of the documentation points out of the house."""
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert not target.startswith(("http:", "https:")), target
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if (
            "reports" not in path or (ROOT / "reports" / "index.html").exists()
        ):  # a source distribution has no reports
            assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def anchors(page: Path) -> set[str]:
    """Headings as GitHub names them: lower case, punctuation gone, hyphens for spaces."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    ("page", "block"), list(fences("python")), ids=lambda argument: getattr(argument, "stem", None)
)
def test_code_runs(page: Path, block: str) -> None:
    exec(compile(block, str(page), "exec"), {})


def test_commands_exist_with_their_options() -> None:
    """Every line of a console block; `qkverify` is asked for the command and for each option."""
    lines = [line for _, block in fences("console") for line in block.splitlines()]
    assert len(lines) > 3
    commands = getattr(typer.main.get_command(app), "commands")  # noqa: B009  (click's group, which has no type here)
    for line in lines:
        assert line.startswith("$ ")
        program, *words = shlex.split(line[2:], comments=True)
        if program != "qkverify":
            assert program in ("pytest", "python"), line
            continue
        options = {name for parameter in commands[words[0]].params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, line


@pytest.mark.parametrize("picture", sorted((DOCS / "pictures").glob("*.svg")), ids=lambda path: path.stem)
def test_pictures_are_shown_and_stand_alone(picture: Path) -> None:
    svg = picture.read_text(encoding="utf-8")
    assert any(f"pictures/{picture.name}" in page.read_text(encoding="utf-8") for page in PAGES)
    assert svg.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    assert "prefers-color-scheme: dark" in svg
    assert not re.search(r"NaN|inf\b|<script|(href|src)=\"(?!#)", svg)
