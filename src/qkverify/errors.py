"""Errors by whose fault they are.

`UnsupportedCase`  nobody's: the implementation says that it does not offer this case.
`NotVerified`      nobody's: what was not put to the test can neither hold nor be broken.
`ContractError`    the implementation's: it broke the interface (wrong shape, wrong dtype, a written input).
`LawViolation`     the implementation's: the numbers are wrong.
`DeviceLost`       the implementation's: after its call the device answers this process no more.
`UsageError`       the user's: an unknown name, option or file; the message says what exists and what is nearest.
`NothingVerified`  nothing could be put to the test: the target raises on every call, or nothing of it can run here.
`HarnessError`     ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from qkverify import foreign_text


class UnsupportedCase(Exception):
    """Raised by an implementation for a case that it does not offer: say what, and the limit."""


class ContractError(AssertionError):
    """The implementation broke the interface: the message names what was expected and what came back."""


class LawViolation(AssertionError):
    """A law is broken: the result lies outside the bound that the declared precision allows."""

    def __init__(self, message: str, *, evidence: object = None) -> None:
        super().__init__(message)
        self.evidence = evidence


class NotVerified(AssertionError):
    """Nothing, or next to nothing, of an implementation was put to the test; or not all, where all is asked for."""


class HarnessError(Exception):
    """The harness failed; the implementation is not to blame."""


class DeviceLost(Exception):
    """What the device says since an illegal access, say: nothing more can be asked of it in this process."""


class UsageError(Exception):
    """The user asked for something that does not exist."""

    @classmethod
    def missing(cls, file: Path, asked: str) -> UsageError:
        """Of a Python file that is not there: how far its path exists, and the nearest name in that folder."""
        folder = next(place for place in file.parents if place.is_dir())
        if folder != file.parent:
            return cls(
                f"no such file: {asked}\n  there is no folder {file.relative_to(folder).parts[0]!r} in {folder}"
            )
        others = [place.name for place in folder.glob("*.py")]
        nearest = difflib.get_close_matches(file.name, others, n=1, cutoff=0.6)
        hint = (
            f"Did you mean {nearest[0]!r}?"
            if nearest
            else f"Python files there: {len(others)}, none of a name like it"
        )
        return cls(f"no such file: {asked}\n  in {folder}: {hint}")

    @classmethod
    def unknown(cls, what: str, asked: str, exists: Iterable[str], *, listed_by: str = "") -> UsageError:
        """What was asked, the nearest name, and what exists, or the command that lists it where it is too long for a message."""
        names = sorted(exists)
        nearest = difflib.get_close_matches(asked, names, n=1, cutoff=0.4)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        every = f"all {what}s: {listed_by}" if listed_by else f"{what}s: {', '.join(names) or 'none'}"
        return cls(f"unknown {what} {asked!r}.{hint}\n  {every}")


class NothingVerified(UsageError):
    """Of all targets nothing could be put to the test; the message says why of each."""


def raised(error: BaseException) -> str:
    """The reason of a subject that failed."""
    return f"raised {foreign_text.type_name(error)}: {first_line(error)}"


def first_line(error: BaseException) -> str:
    return foreign_text.shown_line(foreign_text.shown(error).partition("\n")[0])
