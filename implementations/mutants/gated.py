"""The gated feed-forward network with SiLU: which map is the gate, what it is activated by, its slope."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from qkverify.implementations.mutants.correct.planting import mutant
from qkverify.implementations.mutants.operation_gradients import own

SWIGLU = "swiglu"
Array = np.ndarray
WIDE: dict[str, Any] = {"arrays": "torch", "dtypes": ("float32", "float64"), "evidence": "inferred"}


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


@mutant("L080", operation=SWIGLU, evidence="inferred")
def gate_and_up_are_exchanged(x: Array, w_gate: Array, w_up: Array, w_down: Array) -> Array:
    """The activation is that of the other map: the two halves of one matrix in the other order."""
    gate, up = x @ w_up, x @ w_gate  # right: x @ w_gate, x @ w_up
    return (gate * sigmoid(gate) * up) @ w_down


@mutant("L081", operation=SWIGLU, evidence="inferred")
def gate_is_a_sigmoid(x: Array, w_gate: Array, w_up: Array, w_down: Array) -> Array:
    """The gate is multiplied with its sigmoid nowhere."""
    gate, up = x @ w_gate, x @ w_up
    return (sigmoid(gate) * up) @ w_down  # right: gate * sigmoid(gate) * up


@mutant("L082", operation=SWIGLU, evidence="inferred")
def large_gate_is_nan(x: Array, w_gate: Array, w_up: Array, w_down: Array) -> Array:
    """The sigmoid is a quotient of two exponentials that both overflow."""
    gate, up = x @ w_gate, x @ w_up
    return (gate * (np.exp(gate) / (1 + np.exp(gate))) * up) @ w_down  # right: sigmoid(gate)


@mutant("L083", operation=SWIGLU, evidence="inferred")
def nan_of_a_gate_is_closed(x: Array, w_gate: Array, w_up: Array, w_down: Array) -> Array:
    """What is no number counts as a closed gate."""
    gate, up = x @ w_gate, x @ w_up
    return (np.nan_to_num(gate * sigmoid(gate)) * np.nan_to_num(up)) @ w_down  # right: without nan_to_num


@mutant("L084", operation=SWIGLU, **WIDE)
def slope_of_silu_is_the_sigmoid(x: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor) -> Tensor:
    """The second term of the product rule is missing."""

    def gradients(upstream: Tensor, gate: Tensor) -> tuple[Tensor]:
        share = torch.sigmoid(gate)
        return (upstream * share,)  # right: share * (1 + gate * (1 - share))

    gate = own(torch.nn.functional.silu, gradients, x @ w_gate)
    return (gate * (x @ w_up)) @ w_down
