"""A module of multi-head attention as `multi_head_attention(x, w_q, w_k, w_v, w_o, *, heads, causal)`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.func import functional_call

from qkverify.contract.modules.builder import Builder
from qkverify.contract.modules.calling import Calling
from qkverify.contract.modules.weights import Choice, Reading, reading
from qkverify.errors import UnsupportedCase


@dataclass(frozen=True, eq=False)
class MultiHeadModule:
    """Called with weights, it puts them into a module of their sizes and calls that.

    `causality`: "none" (the module has no such thing), "always", "asked" in each call (by a mask or a switch), or "built": the
    constructor decides. `heads` is the number that an instance has.
    """

    builder: Builder
    calling: Calling
    told: Mapping[str, str] = field(default_factory=dict)  # the user's words for its weights
    choice: Choice = field(default_factory=Choice)
    causality: str = "none"
    heads: int | None = None
    attribute: str = ""  # what its file calls it
    options: tuple[str, ...] = field(init=False)
    _readings: dict[tuple[int, int], Reading] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "__name__", self.attribute)
        object.__setattr__(self, "__qualname__", self.attribute)
        object.__setattr__(self, "options", ("heads", *(("causal",) if self.causality != "none" else ())))

    def __call__(
        self, x: Any, w_q: Any, w_k: Any, w_v: Any, w_o: Any, *, heads: int, causal: bool = False
    ) -> Any:
        """x (B,L,M), w_q, w_k, w_v (M,H*D), w_o (H*D,M) -> (B,L,M). Raises UnsupportedCase for sizes that the module has not."""
        self._check(x, (w_q, w_k, w_v), w_o, heads)
        if self.causality == "always" and not causal:
            raise UnsupportedCase("it is always causal")
        if self.heads not in (None, heads):
            raise UnsupportedCase(f"the instance has {self.heads} heads")
        sizes = {"width": x.shape[2], "heads": heads, "head_size": w_q.shape[1] // heads}
        sizes |= {"causal": causal} if self.causality == "built" else {"causal": False}
        with self.builder.lent(sizes, x.dtype, x.device) as module:
            reading = self.reading(module, heads, w_q.shape[1])
            parameters = reading.placed(module, {"q": w_q, "k": w_k, "v": w_v, "o": w_o}, heads)

            def call(*tokens: Any, **keywords: Any) -> Any:
                return functional_call(module, parameters, tokens, keywords)

            output = self.calling(call, x, causal and self.causality == "asked")
        return output if "o" in reading.letters else output @ w_o

    def reading(self, module: torch.nn.Module, heads: int, inner: int) -> Reading:
        """Of a module of so many heads: one that has a list of them has as many parameters."""
        if (heads, inner) not in self._readings:
            self._readings[heads, inner] = reading(module, self.told, inner, self.choice)
        return self._readings[heads, inner]

    @staticmethod
    def _check(x: Any, inner: tuple[Any, Any, Any], w_o: Any, heads: int) -> None:
        """Raise ValueError where the sizes do not fit one another: what a module is built for must be what it is given."""
        width, joined = x.shape[2], inner[0].shape[1]
        shapes = [*(tuple(w.shape) for w in inner), tuple(w_o.shape)]
        if heads < 1 or joined % heads or shapes != [(width, joined)] * 3 + [(joined, width)]:
            raise ValueError(f"x {tuple(x.shape)} and weights {shapes} do not make {heads} heads")


def randomised(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The module with normal numbers in every parameter: some are made with zeros, through which nothing is seen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            size = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 1.0
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * size)
    return module
