"""Calls out of the middle of the timing, chosen and judged so that nobody knows which: what is timed must be what is right.

A kernel that computes the first calls and the last, and hands out anything in between, would pass a check of the last call alone.
So of some samples, chosen by chance, the result is looked at too: a part of it, drawn after the call returned.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from qkverify.errors import raised
from qkverify.timing.output_check import Refused
from qkverify.timing.sampling import KEPT

MIDDLE = "of the calls that were timed, one in the middle"


class KeptCalls:
    """Those of one cell, so many at `most`. `spot` takes a part of a result at once, and gives what tells its margin later."""

    def __init__(self, spot: Callable[[Any], Callable[[], float | None]], most: int = KEPT) -> None:
        self._spot, self._most = spot, most
        self._margins, self._count = list[Callable[[], float | None]](), 0
        self._wrong = ""

    def keep(self, output: Any) -> None:
        """The result of a call that has just been timed."""
        self._count += 1
        place = random.SystemRandom().randrange(
            self._count
        )  # each is among the last ones with the same chance
        if self._count > self._most <= place:
            return
        try:
            margin_of_it = self._spot(output)
            if len(self._margins) < self._most:
                self._margins.append(margin_of_it)
            else:
                self._margins[place] = margin_of_it
        except Refused as refused:
            self._wrong = self._wrong or str(refused)
        except Exception as error:
            self._wrong = self._wrong or f"{MIDDLE} returned what cannot be read: {raised(error)}"

    def why_wrong(self) -> str:
        """What was seen of a call that was not right, "" where all were."""
        for margin_of_it in self._margins:
            margin = margin_of_it()
            if margin is not None and margin > 1:
                return (
                    f"{MIDDLE} returned a wrong result: {margin:.3g} times its bound away from the reference; the work of the "
                    "others was not done in every call"
                )
        return self._wrong
