"""Whether a module whose result is not that of its operation computes something else on purpose: then it is not accused.

Looked at are the names of its parts, buffers and attributes and the code of its classes, and whether it adds its input.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping

import torch

# What it has -> the words that show it.
STEPS: Mapping[str, re.Pattern[str]] = {
    "a rotary embedding": re.compile(r"rotary|\brope|_rope|inv_freq|freqs_c|apply_rot|rotate_half"),
    "linear biases (ALiBi)": re.compile(r"alibi|slopes"),
    "relative positions": re.compile(r"rel_?pos|relative_?(pos|bias|att)|rel_?bias|relative_attention"),
    "a window": re.compile(r"window|sliding|\bbanded|local_att"),
    "a softcap": re.compile(r"soft_?cap|logit_?cap"),
    "normalised queries and keys": re.compile(
        r"q_?k_?norm|q_norm|k_norm|F\.normalize|l2_?norm|rms_?norm|layer_?norm"
    ),
    "another kernel than the softmax": re.compile(
        r"\belu\(|linear_?attention|performer|linformer|nystrom|cosine_sim|sigmoid\("
    ),
    "a gate": re.compile(r"\bgate|gated|talking"),
    "a memory of earlier calls": re.compile(r"\bmem_|memory_k|null_k|bias_k"),
}


def step_of(module: torch.nn.Module) -> str | None:
    """A step that multi-head attention does not have, in words; None where the module shows none."""
    for text in texts(module):
        for words, pattern in STEPS.items():
            if pattern.search(text):
                return words
    return None


def texts(module: torch.nn.Module) -> Iterator[str]:
    """The names in a module, and the code of its classes that are no part of torch, without comments."""
    for part in module.modules():
        if type(part).__module__.partition(".")[0] == "torch":
            continue  # its own classes speak of much that they do only if asked
        yield from (name.lower() for name in (*vars(part), *part._buffers, *part._modules))
        try:
            code = inspect.getsource(type(part))
        except (OSError, TypeError):  # made on the fly
            continue
        yield re.sub(r'#[^\n]*|""".*?"""', "", code, flags=re.S).lower()
