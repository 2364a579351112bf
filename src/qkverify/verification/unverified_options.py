"""Options that an implementation offers and that no law used. "All laws hold" does not cover them, so they are named.

An option counts as used once a call with it came back, whatever it gave; "gradients", once one was computed. A law that
refuses to run, or that has no operation to speak of, uses nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from qkverify.results import Verdict

WORDS = "offered, not verified"


def unverified(offers: Collection[str], verdicts: Iterable[Verdict]) -> list[str]:
    """The options of one implementation that none of its verdicts comes from; none where a verdict does not say (old files)."""
    ran = [v for v in verdicts if v.outcome != "unavailable"]
    if not ran or any(v.used is None for v in ran):
        return []
    used = {name for v in ran for name in v.used or ()}
    return sorted(set(offers) - used)
