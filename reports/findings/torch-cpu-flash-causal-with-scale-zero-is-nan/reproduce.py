"""torch's CPU flash attention gives NaN for causal attention with scale 0, where the mean is right. Needs torch only."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

query = torch.zeros(1, 1, 2, 1)
key = torch.zeros(1, 1, 2, 1)
value = torch.tensor([0.0, 1.0]).reshape(1, 1, 2, 1)

print(f"torch {torch.__version__}")
print("exact  [0.0, 0.5]")
for backend in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):
    with sdpa_kernel(backend):
        output = scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.0)
    print(f"{backend.name.lower().removesuffix('_attention'):6} {output.flatten().tolist()}")
