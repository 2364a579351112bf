"""torch's own multi-head attention and softmax, as a user calls them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import multi_head_attention_forward

from qkverify import UnsupportedCase, implementation


@implementation(name="torch_multi_head", dtypes=("float32", "float64"), devices=("cpu", "cuda"))
def multi_head_attention(
    x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, w_o: Tensor, *, heads: int, causal: bool = False
) -> Tensor:
    """torch.nn.MultiheadAttention's function, which takes (L,B,M) and transposed weights. x (B,L,M) -> (B,L,M)."""
    length, width = x.shape[1], x.shape[2]
    if w_q.shape[1] != width:
        raise UnsupportedCase("torch ties the heads to the size of the tokens: heads * D = M")
    future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1) if causal else None
    tokens = x.transpose(0, 1)
    output, _ = multi_head_attention_forward(
        tokens, tokens, tokens, width, heads, torch.cat([w_q, w_k, w_v], dim=1).T, None, None, None, False, 0.0,
        w_o.T, None, training=False, need_weights=False, attn_mask=future,
    )  # fmt: skip
    return output.transpose(0, 1)


@implementation(
    name="torch_softmax",
    dtypes=("float32", "float64", "bfloat16", "float16"),
    devices=("cpu", "cuda"),
)
def softmax(scores: Tensor) -> Tensor:
    """torch.softmax along the last axis, which computes half precision in float32."""
    return torch.softmax(scores, dim=-1)
