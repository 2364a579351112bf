"""How a function takes a window without an end on one side: None as the contract has it, -1 as flash-attn, or a large number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from qkverify.contract import SIGNATURE_STYLES, Implementation
from qkverify.probes.defaults import FAR, signature


def with_open_side(
    implementation: Implementation, raises: Callable[[tuple[Any, Any]], BaseException | None]
) -> Implementation:
    """With what stands for an open side where that is not None. `raises` gives what a call with a window raises."""
    if "window" not in implementation.offers or implementation.convention in SIGNATURE_STYLES:
        return implementation
    keyword = implementation.parameters["window"]
    parameter = signature(implementation).get(keyword)
    default = parameter.default if parameter is not None else None
    if isinstance(default, tuple | list) and -1 in default:
        said = f"an open side of {keyword} is -1, as in its default"
        return replace(implementation, open_side=-1, remarks=(*implementation.remarks, said))
    if raises((1, None)) is None or raises((1, FAR)) is not None:
        return implementation
    said = f"{keyword} does not take None for an open side, so a side longer than any sequence is passed"
    return replace(implementation, open_side=FAR, remarks=(*implementation.remarks, said))
