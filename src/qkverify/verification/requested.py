"""What a run of `qkverify verify` checks: the command line, and what it leaves open from the repository's settings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from qkverify.errors import UsageError
from qkverify.verification import checking, known_failures, selection, settings
from qkverify.verification.laws import Law


@dataclass(frozen=True)
class Request:
    """The cells, the laws, the examples, the known failures; `settings` is where all of it was said."""

    plan: checking.VerificationPlan
    selection: selection.Selection
    profile: str
    known: tuple[known_failures.KnownFailure, ...]
    settings: settings.Settings

    @property
    def selected(self) -> str:
        """ "laws causal_*, skip dropout" where laws are left out, nothing where none is."""
        if len(self.selection.laws) == len(self.selection.every):
            return ""
        patterns = {"laws": self.settings.laws, "skip": self.settings.skip}
        return ", ".join(f"{word} {' '.join(names)}" for word, names in patterns.items() if names)


Planner = Callable[[Sequence[Any], Sequence[str], Sequence[str]], checking.VerificationPlan]


def gathered(planner: Planner = checking.plan, **given: Sequence[str] | str | None) -> Request:
    """What to check. `given` are fields of `Settings` by name; what is None or empty counts as not given.

    Raises UsageError for an unknown name, and where there is nothing to check.
    """
    return checked(settings.read().given(**given), planner)


def checked(chosen: settings.Settings, planner: Planner = checking.plan) -> Request:
    """What these settings alone ask for. Raises UsageError as `gathered`."""
    if not chosen.targets:
        raise UsageError(NO_TARGET)
    profile = chosen.profile or "default"
    checking.examples_of(profile)
    own_laws = selection.laws_of_files(chosen.own_laws)
    selected, known = _selected(chosen, own_laws), chosen.entries()
    planned = planner(chosen.targets, chosen.devices, chosen.dtypes)
    if not planned.cells and not planned.unavailable:
        raise UsageError(checking.nothing_to_verify(planned))
    operations = {cell.implementation.operation for cell in planned.cells}
    if operations and not any(operations & set(law.operations) for law in selected.laws):
        names = ", ".join(sorted(operations))
        raise UsageError(f"none of the selected laws is about {names}\n  all laws: qkverify list laws")
    return Request(known_failures.applied(planned, known), selected, profile, known, chosen)


def of_collected(chosen: settings.Settings, laws: Collection[Law]) -> set[Law]:
    """Those of the laws that pytest collected that are selected. Raises UsageError for a name that no law has."""
    own_laws = {law.name: law for law in (*selection.laws_of_files(chosen.own_laws), *laws)}
    kept = {law.name for law in _selected(chosen, own_laws.values()).laws}
    return {law for law in laws if law.name in kept}


def _selected(chosen: settings.Settings, own_laws: Iterable[Law]) -> selection.Selection:
    """What is selected of the built-in laws and one's own; the names of known failures are judged with it."""
    every = list({law.name: law for law in (*checking.law_book(), *own_laws)}.values())
    known_failures.check_laws(chosen.entries(), every)
    return selection.select(every, chosen.laws, chosen.skip)


NO_TARGET = """say what to verify:
  qkverify verify path/file.py:function       a function of a file
  qkverify verify package.module:function     a function that can be imported
  qkverify init                               lists functions in this folder that look like attention
or name it in pyproject.toml:
  [tool.qkverify]
  targets = ["path/file.py:function"]"""
