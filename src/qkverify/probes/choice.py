"""One convention of one implementation, and how it is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Known = Literal["declared", "detected", "not applicable"]


@dataclass(frozen=True)
class Choice:
    """One convention of one implementation: its value and how it is known. `looser` says of a model of rounding that is looser
    than the fused one why it was granted."""

    value: str
    how: Known
    looser: str = ""
