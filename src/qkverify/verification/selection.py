"""The laws of a run: those of `properties/` and of files of one's own, narrowed by name or family.

A pattern is a law's name or a family's, or has the wildcards of a shell: `causal_*`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from qkverify.contract import registry
from qkverify.errors import UsageError
from qkverify.verification.checking import Cell, applicable, law_book, laws_in
from qkverify.verification.laws import Law


@dataclass(frozen=True)
class Selection:
    """The laws of a run, and all from which `--law` and `--skip` selected them."""

    laws: tuple[Law, ...]
    every: tuple[Law, ...]

    @property
    def partial(self) -> bool:
        """Whether laws were left out: then no verdict may speak of all laws."""
        return len(self.laws) < len(self.every)

    def laws_of(self, cell: Cell) -> int | None:
        """How many laws the operation of a cell has, where some were left out."""
        return len(applicable(self.every, cell)) if self.partial else None


def select(laws: Sequence[Law], only: Sequence[str] = (), skip: Sequence[str] = ()) -> Selection:
    """Of the laws those that a pattern of `only` names (default: all), without those that one of `skip` names.

    Raises UsageError for a pattern that names no law, and where nothing is left.
    """
    for word in (*only, *skip):
        if not any(_names(word, law) for law in laws):
            names = {name for law in laws for name in (law.name, law.family)}
            raise UsageError.unknown("law", word, names, listed_by="qkverify list laws")
    kept = [law for law in laws if not only or any(_names(word, law) for word in only)]
    kept = [law for law in kept if not any(_names(word, law) for word in skip)]
    if not kept:
        raise UsageError(f"no law is left: --skip {' '.join(skip)} leaves out every selected law")
    return Selection(tuple(kept), tuple(laws))


def _names(pattern: str, law: Law) -> bool:
    return any(pattern == name or fnmatchcase(name, pattern) for name in (law.name, law.family))


def laws_of_files(files: Iterable[str | Path]) -> tuple[Law, ...]:
    """The laws that these Python files define, in their order.

    Raises UsageError for a file without a law, and for a name that a built-in law or another file has.
    """
    taken = {law.name: "a built-in law" for law in law_book()}
    laws: list[Law] = []
    for file in files:
        module = registry.load_file(file)
        mine = [law for law in laws_in(module) if law.file == module.__file__]  # not those that it imports
        if not mine:
            raise UsageError(f"{file} defines no law; a law is a function decorated with @qkverify.law(...)")
        for law in mine:
            if law.name in taken:
                raise UsageError(
                    f"{file}: the name {law.name!r} is taken by {taken[law.name]}; choose another name"
                )
            taken[law.name] = f"a law of {file}"
        laws += mine
    return tuple(laws)
