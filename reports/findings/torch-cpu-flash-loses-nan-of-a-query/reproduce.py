"""torch's CPU flash attention turns NaN in a query into zeros where there are few keys. Needs torch only."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

query = torch.full((1, 1, 1, 1), torch.nan)

print(f"torch {torch.__version__}")
for keys in (1, 15, 16):
    key = value = torch.ones(1, 1, keys, 1)
    for backend in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):
        with sdpa_kernel(backend):
            output = scaled_dot_product_attention(query, key, value)
        print(f"{keys:2} keys   {backend.name.lower().removesuffix('_attention'):6} {output.item()}")
