"""Optional keywords of other operations than attention, as laws draw them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from qkverify.problem.byte_strategies import Choices, Recipe, strategy
from qkverify.runs.run import active


def optional(name: str, *candidates: Any) -> st.SearchStrategy[Any]:
    """One of the candidates, the simplest first, or None, which leaves the keyword out.

    Always None for a function that does not take the keyword: what it means is then found out (`OperationRun.meant`).
    """

    def make(choices: Choices) -> Any:
        run = active()
        taken = run is None or run.offers_parameter(name)
        return choices.pick("value", (*candidates, None) if taken else (None,))

    return strategy(Recipe({"value": 2}, make))
