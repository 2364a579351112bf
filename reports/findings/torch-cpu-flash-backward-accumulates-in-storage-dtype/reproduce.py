"""dV of torch's CPU flash attention loses what later query blocks add. Needs torch only.

One key, q = k = 0: its weight is exactly 1, so dV is the plain sum of the upstream gradient over the queries.
"""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention


def value_gradient(backend, dtype, upstream):
    query = torch.zeros(1, 1, upstream.numel(), 1, dtype=dtype)
    key, value = torch.zeros(1, 1, 1, 1, dtype=dtype), torch.ones(1, 1, 1, 1, dtype=dtype, requires_grad=True)
    with sdpa_kernel(backend):
        output = scaled_dot_product_attention(query, key, value)
    output.backward(upstream.to(dtype).reshape(output.shape))
    return value.grad.item()


def upstream(queries, block, head, tail):
    """`head` in the first block of queries, then a single `tail` in each later block."""
    gradient = torch.zeros(queries)
    gradient[:block] = head
    gradient[block::block] = tail
    return gradient


def shared_key_gradient(backend, upstream):
    """The same on one line: one query, one key, three query heads that share it (grouped-query attention)."""
    zero, key = torch.zeros(1, 3, 1, 1, dtype=torch.bfloat16), torch.zeros(1, 1, 1, 1, dtype=torch.bfloat16)
    value = torch.ones_like(key, requires_grad=True)
    with sdpa_kernel(backend):
        output = scaled_dot_product_attention(zero, key, value, enable_gqa=True)
    output.backward(torch.tensor(upstream, dtype=torch.bfloat16).reshape(output.shape))
    return value.grad.item()


print(f"torch {torch.__version__}")
print("three heads on one key, upstream 256, 1, 1 in bfloat16: exact 258,", end=" ")
print(f"math {shared_key_gradient(SDPBackend.MATH, [256, 1, 1]):.0f},", end=" ")
print(f"flash {shared_key_gradient(SDPBackend.FLASH_ATTENTION, [256, 1, 1]):.0f}\n")
print(f"{'dtype':9} {'queries':>7} {'exact':>8} {'math':>8} {'flash':>8}   lost by flash")
for dtype, queries, block, head, tail in (
    (torch.bfloat16, 160, 32, 8.0, 1.0),
    (torch.bfloat16, 25_856, 256, 1.0, 1.0),
    (torch.float16, 25_856, 256, 8.0, 1.0),
):
    given = upstream(queries, block, head, tail)
    exact = given.double().sum().item()
    math = value_gradient(SDPBackend.MATH, dtype, given)
    flash = value_gradient(SDPBackend.FLASH_ATTENTION, dtype, given)
    name = str(dtype).removeprefix("torch.")
    print(f"{name:9} {queries:7} {exact:8.0f} {math:8.0f} {flash:8.0f}   {1 - flash / exact:.1%}")
