"""`qkverify init`: a small working set of files for a repository whose function is to keep the laws of attention.

No file is overwritten: what is there already stays, and what should be added to it is said.
"""

from __future__ import annotations

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
    """One file of the set: `about` says what it is for; of a `shared` one others write parts as well."""

    path: Path
    text: str
    about: str
    shared: bool = False

    def lacking(self) -> str:
        """What a file that is there already does not say yet; nothing where it need not."""
        if not self.shared:
            return ""
        there = self.path.read_text(encoding="utf-8", errors="replace")
        return "" if "qkverify" in there else self.text


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
    files = [
        File(tests / "test_attention_laws.py", filled("test.py", **values), "pytest runs the laws"),
        File(Path(LAWS), filled("laws.py", **values), "laws of your own: an example"),
        File(Path(known_failures.FILE), filled("known-failures.toml", **values), "failures that are known: none yet"),
        File(Path(".github/workflows/qkverify.yml"), filled("workflow.yml", **values), "the laws in GitHub Actions"),
        File(Path(".pre-commit-config.yaml"), filled("pre-commit.yaml", **values), "a hook for pre-commit", shared=True),
    ]  # fmt: skip
    if adapted:
        files.insert(
            0, File(Path(adapter.FILE), adapter.source(adapted), f"calls {adapted.name} as qkverify does")
        )
    return Set(verified, files, adapter.to_fill_in(adapted) if adapted else ())


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
