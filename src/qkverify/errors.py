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
from collections.abc import Collection, Iterable
from pathlib import Path

from qkverify import foreign_text

# What people call things whose name here resembles another thing more.
SYNONYMS = {
    "gpu": "cuda", "nvidia": "cuda", "host": "cpu", "half": "float16", "fp16": "float16", "bf16": "bfloat16",
    "single": "float32", "fp32": "float32", "double": "float64", "fp64": "float64", "pytorch": "torch", "np": "numpy",
}  # fmt: skip
CLOSENESS = (
    0.7  # of two names, as difflib measures it, from 0 to 1: two words of one kind ("cpu", "gpu") are less
)
PROPOSALS = 4  # names at most


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
    def missing(cls, file: Path, as_given: str) -> UsageError:
        """Of a Python file that is not there: how far its path exists, and the nearest name in that folder."""
        folder = next(place for place in file.parents if place.is_dir())
        if folder != file.parent:
            return cls(
                f"no such file: {as_given}\n  there is no folder {file.relative_to(folder).parts[0]!r} in {folder}"
            )
        others = [place.name for place in folder.glob("*.py")]
        count = f"{len(others)} Python file{'s' if len(others) != 1 else ''}"
        hint = did_you_mean(file.name, others) or f"this folder has {count}, and no name is similar"
        return cls(f"no such file: {as_given}\n  in {folder}: {hint}")

    @classmethod
    def unknown(cls, what: str, word: str, exists: Iterable[str], *, listed_by: str = "") -> UsageError:
        """What was asked, the nearest name, and what exists, or the command that lists it where it is too long for a message."""
        names = sorted(exists)
        hint = " ".join(["", *filter(None, [did_you_mean(word, names)])])
        every = f"all {what}s: {listed_by}" if listed_by else f"{what}s: {', '.join(names) or 'none'}"
        return cls(f"unknown {what} {word!r}.{hint}\n  {every}")


class NothingVerified(UsageError):
    """Of all targets nothing could be put to the test; the message says why of each."""


def did_you_mean(word: str, names: Collection[str]) -> str:
    """ "Did you mean 'cuda'?", or "" if no name is near. Of variants, such as 'a-x' and 'a-y', several are proposed."""
    near = _nearest(word.lower(), names)
    if not near:
        return ""
    *first, last = [repr(name) for name in near[:PROPOSALS]]
    return f"Did you mean {', '.join(first)} or {last}?" if first else f"Did you mean {last}?"


def _nearest(word: str, names: Collection[str]) -> list[str]:
    """By another word for it, by swapped letters, by spelling (also of the part before "-"), or as a part of names."""
    if SYNONYMS.get(word) in names:
        return [SYNONYMS[word]]
    if swapped := [name for name in names if sorted(name.lower()) == sorted(word)]:
        return swapped[:1]
    spelled = {name.partition("-")[0] for name in names} | {*names}
    if near := difflib.get_close_matches(word, sorted(spelled), n=1, cutoff=CLOSENESS):
        return near if near[0] in names else [name for name in names if name.startswith(f"{near[0]}-")]
    return [name for name in names if len(word) > 1 and word in name.lower()]


def raised(error: BaseException) -> str:
    """The reason of a subject that failed."""
    return f"raised {foreign_text.type_name(error)}: {first_line(error)}"


def first_line(error: BaseException) -> str:
    return foreign_text.shown_line(foreign_text.shown(error).partition("\n")[0])
