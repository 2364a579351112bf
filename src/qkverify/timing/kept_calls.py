"""Calls out of the middle of the timing, chosen and judged so that nobody knows which: what is timed must be what is right.

A kernel that computes the first calls and the last, and hands out anything in between, would pass a check of the last call alone.
So of some samples, chosen by chance, the result is looked at too: a part of it, drawn after the call returned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qkverify.errors import raised
from qkverify.timing.output_check import Refused

MIDDLE = "of the calls that were timed, one in the middle"


class KeptCalls:
    """Those of one cell. `spot` takes a part of a result at once, and gives what tells its margin later."""

    def __init__(self, spot: Callable[[Any], Callable[[], float | None]]) -> None:
        self._spot, self._margins = spot, list[Callable[[], float | None]]()
        self._wrong = ""

    def keep(self, output: Any) -> None:
        """The result of a call that has just been timed."""
        try:
            self._margins.append(self._spot(output))
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
