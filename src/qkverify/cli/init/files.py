"""`qkverify init`: a small working set of files for a repository whose function is to keep the laws of attention.

No file is overwritten: what is there already stays, and what should be added to it is said.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import qkverify
from qkverify.cli.init import adapter, candidates
from qkverify.cli.init.candidates import Candidate
from qkverify.cli.init.templates import filled
from qkverify.errors import UsageError
from qkverify.verification import known_failures

LAWS = "qkverify_laws.py"


@dataclass(frozen=True)
class File:
    """One file of the set: `about` says what it is for.

    `names` is how it names the target, and `addition` the part of the text that a file of other targets lacks; both are empty
    for a file that serves all targets. Of a `shared` file others write parts as well.
    """

    path: Path
    text: str
    about: str
    shared: bool = False
    names: str = ""
    addition: str = ""

    def lacking(self) -> str:
        """What a file that is there already does not say yet; nothing where it need not."""
        there = self.path.read_text(encoding="utf-8", errors="replace")
        if self.shared and "qkverify" not in there:
            return self.text
        return "" if self.names in there else self.addition


@dataclass(frozen=True)
class Set:
    """The files for one target, and what is left to be filled in."""

    target: str
    files: Sequence[File]
    to_fill_in: Sequence[str]


def files_for(target: str, *, with_adapter: bool = False) -> Set:
    """The set for a target: of the working folder, "path/file.py:function" or "module:function".

    Raises UsageError where the file or the function is not there, and for an adapter of what is no attention.
    """
    candidate = _candidate(target)
    if with_adapter and candidate is None:
        raise UsageError(
            f"an adapter is for a function that takes query, key and value; {target} does not seem to be one"
        )
    adapted = candidate if candidate and (with_adapter or candidate.needs_adapter) else None
    verified = adapter.FILE if adapted else target
    values = {
        "target": target,
        "verify_target": shlex.quote(verified),
        "toml_target": verified.replace("\\", "/"),
        "laws_file": LAWS,
        "known_file": known_failures.FILE,
        "version": qkverify.__version__,
        "packages": candidate.arrays if candidate else "numpy",
    }
    tests = Path("tests") if Path("tests").is_dir() else Path()
    is_path = ".py" in verified
    values["parents"] = ".parents[1]" if tests.parts else ".parent"
    values["test_target"] = f'f"{{ROOT}}/{verified}"' if is_path else f'"{verified}"'
    test, workflow, hook = (filled(name, **values) for name in ("test.py", "workflow.yml", "pre-commit.yaml"))
    own_name = re.sub(r"\W+", "_", verified.replace(".py:", "_")).strip("_").lower()
    further_test = _from("def test_", test).replace("def test_attention_keeps", f"def test_{own_name}_keeps")
    run = f"qkverify verify {values['verify_target']} "
    files = [
        File(tests / "test_attention_laws.py", test, "pytest runs the laws", names=values["test_target"],
             addition=further_test),
        File(Path(LAWS), filled("laws.py", **values), "laws of your own: an example"),
        File(Path(known_failures.FILE), filled("known-failures.toml", **values), "failures that are known: none yet"),
        File(Path(".github/workflows/qkverify.yml"), workflow, "the laws in GitHub Actions", names=run,
             addition=_line(run, workflow).replace("qkverify.xml", f"qkverify-{own_name}.xml")),
        File(Path(".pre-commit-config.yaml"), hook, "a hook for pre-commit", shared=True, names=run,
             addition=_from("  - repo: local", hook)),
    ]  # fmt: skip
    if adapted:
        files.insert(
            0, File(Path(adapter.FILE), adapter.source(adapted), f"calls {adapted.name} as qkverify does")
        )
    return Set(verified, files, adapter.to_fill_in(adapted) if adapted else ())


def _from(start: str, text: str) -> str:
    """The text from where `start` stands."""
    return text[text.index(start) :]


def _line(words: str, text: str) -> str:
    """The line in which the words stand."""
    return next(line for line in text.splitlines(keepends=True) if words in line)


def settings_for(target: str) -> str:
    """The lines of pyproject.toml with which `qkverify verify` needs no arguments."""
    return filled("settings.toml", toml_target=target, laws_file=LAWS, known_file=known_failures.FILE)


def _candidate(target: str) -> Candidate | None:
    """What the source says of a target; None of one that takes no query, key and value, or that lies elsewhere."""
    place, _, name = target.rpartition(":")
    if not place:
        raise UsageError(
            f"{target!r} does not name a function; write path/file.py:function or module:function"
        )
    file = Path(place) if place.endswith(".py") else _file_of(place)
    if file is None:
        return None
    if not file.is_file():
        raise UsageError.missing(file.resolve(), place)
    here, full = Path.cwd().resolve(), file.resolve()
    if not full.is_relative_to(here):
        raise UsageError(f"{place} is not in {here}; run qkverify init in the folder of its repository")
    file = full.relative_to(here)
    names = candidates.names_of(file)
    if name not in names:
        raise UsageError.unknown("function", name, names)
    return next((candidate for candidate in candidates.of_file(file) if candidate.name == name), None)


def _file_of(module: str) -> Path | None:
    """The file of a module of this repository."""
    path = Path(*module.split("."))
    places = [
        root / end
        for root in (Path(), Path("src"))
        for end in (path.with_suffix(".py"), path / "__init__.py")
    ]
    return next((place for place in places if place.is_file()), None)
