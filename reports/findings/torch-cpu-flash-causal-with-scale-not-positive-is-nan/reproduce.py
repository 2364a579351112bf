"""torch's CPU flash attention gives NaN for causal attention with a scale of zero or below. Needs torch only."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

query = key = torch.zeros(1, 1, 2, 1)
value = torch.tensor([1.0, 3.0]).reshape(1, 1, 2, 1)

print(f"torch {torch.__version__}")
for scale in (0.0, -1.0):
    print(f"scale {scale:4}   exact  [1.0, 2.0]")
    for backend in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):
        with sdpa_kernel(backend):
            output = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
        print(f"             {backend.name.lower().removesuffix('_attention'):6} {output.flatten().tolist()}")
