"""Where and when a run took place, and the number of the recorded form."""

from __future__ import annotations

import msgspec

SCHEMA = 1  # when this grows, and what must grow with it: see `migrations`


Fact = str | int | float | None


class Fingerprint(msgspec.Struct, frozen=True):
    """Where a run took place: `identity` decides what it may be compared with, `state` is only recorded."""

    identity: dict[str, Fact]
    state: dict[str, Fact]


class RunStart(msgspec.Struct, frozen=True, kw_only=True, tag="run"):
    """The first record of a run. `started` is ISO 8601 in UTC; `command` is what repeats the run; `selection` says which laws
    were checked, where some were left out; `against` is the implementation that the others are compared
    with, where one was named."""

    schema: int = SCHEMA
    qkverify: str
    started: str
    command: str
    profile: str
    seed: int | None = None
    fingerprint: Fingerprint
    selection: str = ""
    against: str = ""
