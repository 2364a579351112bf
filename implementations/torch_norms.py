"""torch's own layer norm and RMS norm, one fused call each, and the two as models write them, step by step."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from qkverify import implementation

WIDE, HALF = ("float32", "float64"), ("bfloat16", "float16")
DTYPES = (*WIDE, *HALF)
DEVICES = ("cpu", "cuda")


# Mean and inverse deviation are kept for the backward pass in the dtype of the input.
KEPT_IN_STORAGE_DTYPE = "reports/findings/torch-cpu-layer-norm-backward-uses-statistics-in-storage-dtype"
FINDINGS = {f"norm_gradients_agree_with_reference[cpu-{dtype}]": KEPT_IN_STORAGE_DTYPE for dtype in HALF}


@implementation(name="torch_layer_norm", dtypes=DTYPES, devices=DEVICES, findings=FINDINGS)
def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5) -> Tensor:
    """torch.nn.functional.layer_norm: x (..., M), weight and bias (M) -> (..., M)."""
    return functional.layer_norm(x, x.shape[-1:], weight, bias, eps)


@implementation(name="torch_rms_norm", dtypes=DTYPES, devices=DEVICES)
def rms_norm(x: Tensor, weight: Tensor, *, eps: float = 1e-5) -> Tensor:
    """torch.nn.functional.rms_norm: x (..., M), weight (M) -> (..., M)."""
    return functional.rms_norm(x, x.shape[-1:], weight, eps)


@implementation(name="torch_layer_norm-steps", dtypes=WIDE, devices=DEVICES)
def layer_norm_in_steps(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5) -> Tensor:
    """A mean, a variance and a root, which autograd differentiates one by one."""
    variance, mean = torch.var_mean(x, dim=-1, keepdim=True, correction=0)
    return (x - mean) / torch.sqrt(variance + eps) * weight + bias


@implementation(name="torch_rms_norm-steps", dtypes=WIDE, devices=DEVICES)
def rms_norm_in_steps(x: Tensor, weight: Tensor, *, eps: float = 1e-5) -> Tensor:
    """A mean of squares and an inverse root, which autograd differentiates one by one."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight
