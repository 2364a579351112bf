"""torch.nn.functional.scaled_dot_product_attention, one entry for each of its back ends.

Left alone, torch chooses a back end by the inputs; here each is asked by name, and what it refuses is
reported as unsupported in torch's own words. What torch 2.13 offers on a CPU:

math    every case; half precision is computed in float32 and rounded at the end. It holds every score.
flash   tiles, in float32 inside; in half precision the exponential is good to 1e-4 (pytorch/pytorch#151441).
        E = D only, the last axis of query, key and value in steps of one, no gradient of a bias. Its gradients
        take delta = rowsum(dO * O) from the rounded output and accumulate in the storage dtype.

Causal is aligned top-left. Masked and future positions are read: NaN in one gets out. The conventions of the
back ends that exist on CUDA only are not declared here but found out where they run.

torch has one argument, attn_mask, for what are two here; a bias and a mask become one bias, and causal joins
them, because torch documents attn_mask together with is_causal as an error.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from qkverify import Finding, UnsupportedCase, implementation

ONE_AT_A_TIME = threading.RLock()  # which back ends are allowed is one setting for all threads
BLOCK = 32  # queries: the smallest that flash takes on a CPU
VECTOR = 16  # numbers of four bytes, with AVX-512
REFUSAL = "No available kernel. Aborting execution."
# What a kernel on CUDA says of inputs that torch had let through to it, before it computes: sizes, strides and addresses that
# it was not built for. (aten/src/ATen/native/transformers/cuda and cudnn/MHA.cpp)
REFUSED_ON_CUDA = (
    "batch size must be positive",
    "is not correctly aligned",
    "cutlassF: no kernel found to launch!",
    "No execution plans support the graph",
    "No valid execution plans built",
    "GRAPH_NOT_SUPPORTED",
)
TITLES = {
    SDPBackend.FLASH_ATTENTION: "flash",
    SDPBackend.EFFICIENT_ATTENTION: "memory efficient",
    SDPBackend.CUDNN_ATTENTION: "cudnn",
}


def attention_on(backend: SDPBackend) -> Callable[..., Tensor]:
    """The attention of one back end."""

    def attention(
        query: Tensor, key: Tensor, value: Tensor, *,
        mask: Tensor | None = None, bias: Tensor | None = None, causal: bool = False,
        scale: float | None = None, dropout: float = 0.0,
    ) -> Tensor:  # fmt: skip
        if bias is not None and backend == SDPBackend.MATH:
            # Joined in half precision, its gradient would be rounded element by element before it is summed.
            bias = bias.to(torch.promote_types(bias.dtype, torch.float32))
        joined = joined_mask(query, key, mask, bias, causal)
        with ONE_AT_A_TIME, sdpa_kernel(backend), warnings.catch_warnings(record=True) as reasons:
            warnings.simplefilter("always")
            try:
                return scaled_dot_product_attention(
                    query, key, value, attn_mask=joined, is_causal=causal and joined is None, scale=scale,
                    enable_gqa=query.shape[1] != key.shape[1], dropout_p=dropout,
                )  # fmt: skip
            except RuntimeError as error:
                refused = refusal(error, backend, query.device.type, [str(w.message) for w in reasons])
                if refused is None:
                    raise
                raise UnsupportedCase(refused) from error

    return attention


def refusal(error: RuntimeError, backend: SDPBackend, device: str, warned: Sequence[str]) -> str | None:
    """torch's own words where an error says that a back end does not take the inputs; None for any other error."""
    if " ".join(str(error).split()) != REFUSAL:
        said = [line for line in str(error).splitlines() if any(word in line for word in REFUSED_ON_CUDA)]
        return said[0].strip() if device == "cuda" and said else None
    # On CUDA torch goes through all fused back ends, a line ahead of each, and of the others it says that they are disabled.
    sentences = [sentence.partition(" (Triggered internally")[0].strip() for sentence in warned]
    title, of_backend, every = "", list[str](), list[str]()
    for sentence in sentences:
        if sentence.endswith("because:"):
            title = sentence.lower()
            continue
        every.append(sentence)
        if title.startswith(TITLES.get(backend, "")):
            of_backend.append(sentence)
    return " ".join(of_backend or every) or f"{REFUSAL} torch says no more."


def joined_mask(
    query: Tensor, key: Tensor, mask: Tensor | None, bias: Tensor | None, causal: bool
) -> Tensor | None:
    """Mask, bias and, where there is one, causality as torch's attn_mask; None where there is neither."""
    if mask is None and bias is None:
        return None
    if causal:
        past = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
        mask = past if mask is None else mask & past
    if bias is not None:
        mask = bias if mask is None else torch.where(mask, bias, -torch.inf)
    assert mask is not None
    return mask[(None,) * (4 - mask.ndim)]  # the fused kernels take no masks of one or three axes


HALF, EVERY = ("float16", "bfloat16"), ("float64", "float32", "float16", "bfloat16")


def only_nan(problem: Any) -> bool:
    """Whether the scores of some query are all NaN: it holds NaN itself, or every key that it sees does."""
    good = ~np.repeat(np.isnan(problem.key).any(-1), problem.group, axis=1)[:, :, None]  # (B,H,1,K)
    good = good & ~np.isnan(problem.query).any(-1)[..., None]  # (B,H,Q,K)
    return bool((problem.some_visible & ~(problem.visible & good).any(-1)).any())


# What the laws found in released torch, recorded: shown, and no run fails by it, unless it fails elsewhere too.
# law[device-dtype] -> finding.
ACCUMULATES = Finding(
    "reports/findings/torch-cpu-flash-backward-accumulates-in-storage-dtype",
    sentence="torch's CPU flash attention accumulates gradients in bfloat16 and float16",
    when=lambda p: p.group > 1 or p.sizes["Q"] > BLOCK or p.sizes["K"] > BLOCK,
)
SCALE_NOT_POSITIVE = Finding(
    "reports/findings/torch-cpu-flash-causal-with-scale-not-positive-is-nan",
    sentence="torch's CPU flash attention gives NaN for causal attention with a scale of zero or below",
    when=lambda p: p.causal and p.scale is not None and p.scale <= 0,
)
NAN_QUERY = Finding(
    "reports/findings/torch-cpu-flash-loses-nan-of-a-query",
    sentence="torch's CPU flash attention turns NaN in a query into zeros where there are few keys",
    when=lambda p: p.sizes["K"] < VECTOR and only_nan(p),
)
KEY_COUNT = Finding(
    "reports/findings/torch-cpu-flash-counts-keys-by-the-values",
    sentence="torch's CPU flash attention counts the keys by the values",
    when=lambda p: p.value.shape[2] != p.key.shape[2],
)
FLASH_FINDINGS = {
    **{
        f"{law}[cpu-{dtype}]": ACCUMULATES
        for law in ("vjp_agrees_with_reference", "value_gradient_is_weights_transposed",
                    "gqa_gradients_are_summed", "adjoint_identity_in_values", "upstream_of_stride_zero",
                    "gradients_of_some_inputs", "gradients_through_views", "gradients_of_empty_axes",
                    "backward_belongs_to_its_forward", "usual_gradients", "vjp_agrees_on_real_activations",
                    "backward_twice", "overwritten_between_the_passes")
        for dtype in HALF
    },
    "zero_scale_averages[cpu]": SCALE_NOT_POSITIVE,
    "negative_scale_is_negated_queries[cpu]": SCALE_NOT_POSITIVE,
    "gradients_at_scales_not_positive[cpu]": SCALE_NOT_POSITIVE,
    "mismatched_sizes_raise[cpu]": KEY_COUNT,
    "nan_goes_where_it_must[cpu]": NAN_QUERY,
}  # fmt: skip

BOTH, CUDA, IN_EIGHTS = ("cpu", "cuda"), ("cuda",), ("D % 8 == 0", "E % 8 == 0")
ON_CPU = {"empty_rows": "zero", "masked_values": "read"}

for name, backend, devices, dtypes, requires, semantics in (
    ("math", SDPBackend.MATH, BOTH, EVERY, (), {**ON_CPU, "delta": "weights", "batch_invariant": False}),
    ("flash", SDPBackend.FLASH_ATTENTION, BOTH, EVERY, ("E == D",), {**ON_CPU, "delta": "output"}),
    ("efficient", SDPBackend.EFFICIENT_ATTENTION, CUDA, EVERY[1:], IN_EIGHTS, {"delta": "output"}),
    ("cudnn", SDPBackend.CUDNN_ATTENTION, CUDA, HALF, IN_EIGHTS, {"delta": "output"}),
):
    implementation(
        name=f"torch_sdpa-{name}",
        summary=f"torch's scaled_dot_product_attention, back end {name}",
        arrays="torch",
        dtypes=dtypes,
        devices=devices,
        requires=requires,
        precision=dict.fromkeys(HALF, "fused")
        | (dict.fromkeys(("float16-cpu", "bfloat16-cpu"), "fused-fast-exp") if name == "flash" else {}),
        causal_alignment="top-left",
        findings=FLASH_FINDINGS if name == "flash" else {},
        **semantics,
    )(attention_on(backend))
