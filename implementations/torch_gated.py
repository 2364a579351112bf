"""The gated feed-forward network with SiLU by torch's own linear and silu."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear, silu

from qkverify import implementation


@implementation(
    name="torch_swiglu", dtypes=("float32", "float64", "bfloat16", "float16"), devices=("cpu", "cuda")
)
def swiglu(x: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor) -> Tensor:
    """Three times torch.nn.functional.linear, which takes transposed weights: x (B,L,M) -> (B,L,M)."""
    return linear(silu(linear(x, w_gate.T)) * linear(x, w_up.T), w_down.T)
