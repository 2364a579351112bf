"""What the mutants of the Triton kernel are without their bugs."""

from __future__ import annotations

from typing import Any

from qkverify.implementations.mutants.correct.call import Call
from qkverify.implementations.mutants.correct.planting import control
from qkverify.implementations.mutants.correct.triton_tiled import INTERPRETED, TRITON_TILED


@control(
    offers=("causal", "scale", "softcap", "key_lengths"),
    **{name: declared for name, declared in INTERPRETED.items() if name != "base"},
)
def triton_tiled(call: Call) -> Any:
    """Tiles of queries and keys in a Triton kernel, interpreted."""
    return TRITON_TILED(call)
