"""Flash attention in Triton: one forward and three backward kernels, compiled on CUDA, interpreted on a CPU.

Rules that the kernels keep:

- Every tensor is read through its own strides, the upstream gradient too; nothing is copied to be contiguous. Offsets
  are 64-bit. Where all pointers and strides are multiples of 16 bytes, strides travel in `UNIT`s of that many elements,
  so that the compiler may use vector loads without a compilation per stride.
- Causality, windows and lengths are one thing: query i sees the keys [i + K - Q - left, i + K - Q + right] below its
  batch entry's length (causal is right = 0: aligned bottom-right). Tiles of keys outside are skipped, tiles inside need
  no mask, and only the tiles on an edge compute one.
- Keys and values that no query of a tile sees are never loaded. Those that only its other queries see are, on an edge,
  and a matrix product would turn their NaN into everyone's (0 * NaN). So a result that is not finite is computed once
  more, by `CAREFUL` loops: there NaN reaches the rows that see it and no others. Finite rows come out bit-equal.
- Accumulators are float32. Weights and their gradients are rounded to the input dtype before each matrix product.
  Exponentials are base 2 with log2(e) folded into the scale. The backward is that of FlashAttention-2
  (https://arxiv.org/abs/2307.08691): weights from the stored log-sum-exp, delta from the stored output.
- No atomics: one program owns each output tile, and dK and dV are summed over the queries of all heads of their group
  in registers. So results are deterministic, and an entry does not depend on the rest of its batch.

On a CPU the same source is run by Triton's interpreter (`interpreter`): call from one thread at a time there.

`primitives` and `pieces` are the device functions, `forward` and `backward` the kernels, `tiles` their sizes, `launch` starts
them, `autograd` is what torch calls. `tuning/` measures the tiles on a GPU.
"""

import torch

from qkverify import UnsupportedCase, implementation
from qkverify.implementations.triton_flash.autograd import FlashAttention, Settings
from qkverify.implementations.triton_flash.constants import GRID_LIMIT, SIZE_LIMIT, SMALLEST_SCALE
from qkverify.implementations.triton_flash.tiles import INTERPRETED


def unavailable(device: str) -> str | None:
    """Why this device cannot run the kernels, or None. A CPU always can: through the interpreter."""
    if device == "cuda" and not torch.cuda.is_available():
        return "no CUDA device"
    if device == "cuda" and torch.cuda.get_device_capability() < (8, 0):
        return "needs a GPU of compute capability 8.0: bfloat16 products"
    return None


def _check(query, key, value, key_lengths) -> None:
    if not query.ndim == key.ndim == value.ndim == 4:
        raise ValueError(f"query, key and value have 4 axes, not {query.ndim}, {key.ndim} and {value.ndim}")
    (batch, heads, _, size), (_, key_heads, keys, _) = query.shape, key.shape
    if key.shape != (batch, key_heads, keys, size) or value.shape[:3] != key.shape[:3]:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (query, key, value))
        raise ValueError(f"query (B,H,Q,D), key (B,G,K,D) and value (B,G,K,E) do not fit together: {shapes}")
    if heads % max(key_heads, 1):
        raise ValueError(f"{heads} query heads cannot share {key_heads} key/value heads evenly")
    if not query.dtype == key.dtype == value.dtype or not query.device == key.device == value.device:
        raise ValueError("query, key and value have one dtype and one device")
    if key_lengths is not None and key_lengths.shape != (batch,):
        raise ValueError(f"key_lengths has shape ({batch},), not {tuple(key_lengths.shape)}")
    if query.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise UnsupportedCase(f"computes in float32, float16 and bfloat16, not {query.dtype}")
    if max(size, value.shape[-1]) > SIZE_LIMIT:
        raise UnsupportedCase(f"head sizes D = {size} and E = {value.shape[-1]}: the limit is {SIZE_LIMIT}")
    if max(batch, heads) > GRID_LIMIT:
        raise UnsupportedCase(f"B = {batch} and H = {heads}: the limit is {GRID_LIMIT}")


@implementation(
    name="triton_flash",
    summary="one Triton kernel, forward and backward; interpreted on a CPU",
    effort={"cpu": 0.1},  # the interpreter takes a tenth of a second for a small call
    arrays="torch",
    dtypes=("float32", "float16", "bfloat16"),
    devices=("cpu", "cuda"),
    requires=(f"D <= {SIZE_LIMIT}", f"E <= {SIZE_LIMIT}", f"B <= {GRID_LIMIT}", f"H <= {GRID_LIMIT}"),
    precision={"float16": "fused", "bfloat16": "fused"},
    available=unavailable,
    tile=(INTERPRETED.queries,),
    causal_alignment="bottom-right",
    empty_rows="zero",
    masked_values="ignored",
    deterministic=True,
    batch_invariant=True,
    delta="output",
    lse="natural",
    lse_gradient=False,
)
def attention(
    query, key, value, *,
    causal=False, window=None, scale=None, softcap=None, key_lengths=None, return_lse=False,
):  # fmt: skip
    """Flash attention in one Triton kernel, with its gradients.

    query (B,H,Q,D), key (B,G,K,D), value (B,G,K,E), any strides; float32, float16 or bfloat16; D, E <= 256. Query head h
    reads head h // (H // G). causal is aligned bottom-right. window (left, right), None = unbounded. key_lengths (B,),
    int. Returns (B,H,Q,E) in the dtype of query, with return_lse also the natural log-sum-exp (B,H,Q) in float32.
    Raises ValueError for shapes that do not fit, UnsupportedCase for sizes and dtypes that are not offered.
    """
    _check(query, key, value, key_lengths)
    left, right = window if window is not None else (None, None)
    if causal:
        right = 0 if right is None else min(right, 0)
    scale = (query.shape[-1] or 1) ** -0.5 if scale is None else float(scale)
    if scale < SMALLEST_SCALE:  # the kernels take the largest product for the largest score
        query, scale = (query * -1.0, -scale) if scale <= -SMALLEST_SCALE else (query * 0.0, 1.0)
    if softcap is not None:
        softcap = abs(float(softcap))
        softcap = softcap if 0 < softcap < float("inf") else None
    settings = Settings(scale, left, right, softcap, return_lse)
    output, lse = FlashAttention.apply(query, key, value, key_lengths, settings)
    return (output, lse) if return_lse else output
