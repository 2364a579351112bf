"""A module of an encoder layer as `encoder_layer(x, weights, *, heads, norm_first, eps, key_lengths)`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.func import functional_call

from qkverify.contract.modules import weight_names
from qkverify.contract.modules.builder import Builder
from qkverify.contract.modules.calling import KINDS, Calling
from qkverify.contract.modules.weights import Choice, Reading, reading
from qkverify.errors import UnsupportedCase

PADDING_AXES: Mapping[str, Callable[[Any], Any]] = {
    "(B,L)": lambda mask: mask,
    "(B,1,1,L)": lambda mask: mask[:, None, None],
    "(B,1,L)": lambda mask: mask[:, None],
}


@dataclass(frozen=True)
class Padding:
    """A reading of a module's mask of padding: the parameter, its kind and its axes."""

    parameter: str
    kind: str
    axes: str

    def __call__(self, lengths: Any, x: Any) -> Any:
        """Of lengths (B,) and tokens (B,L,M)."""
        visible = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        return PADDING_AXES[self.axes](KINDS[self.kind](visible, x))

    def words(self) -> str:
        return f"{self.parameter} is a mask of padding {self.axes}, {self.kind}"


@dataclass(frozen=True)
class Places:
    """Where the parameters of feed-forward and norms are: name in the contract -> parameter; `transposed` as in torch."""

    vectors: Mapping[str, str]  # b_1, b_2, gain_1, shift_1, gain_2, shift_2
    matrices: Mapping[str, str]  # w_1, w_2, of torch.nn.Linear


def places(module: torch.nn.Module) -> Places | None:
    """None where there are not two maps of a feed-forward network and two norms with gain and shift."""
    maps, norms = [], []
    for name, part_of_it in module.named_modules():
        if isinstance(part_of_it, torch.nn.Linear):
            rows, columns = part_of_it.weight.shape
            if weight_names.roles(f"{name}.weight") in ("", "o") and rows != columns:
                maps.append((name, part_of_it))
        elif isinstance(part_of_it, torch.nn.LayerNorm) and part_of_it.bias is not None:
            norms.append(name)
    if len(maps) != 2 or len(norms) != 2 or any(linear.bias is None for _, linear in maps):
        return None
    vectors = {f"b_{i}": f"{name}.bias" for i, (name, _) in enumerate(maps, 1)}
    for i, name in enumerate(norms, 1):
        vectors |= {f"gain_{i}": f"{name}.weight", f"shift_{i}": f"{name}.bias"}
    return Places(vectors, {f"w_{i}": f"{name}.weight" for i, (name, _) in enumerate(maps, 1)})


@dataclass(frozen=True, eq=False)
class EncoderModule:
    """Called with weights, it puts them into a module of their sizes and calls that. `built` are options of its constructor."""

    builder: Builder
    calling: Calling
    places: Places
    told: Mapping[str, str] = field(default_factory=dict)
    choice: Choice = field(default_factory=Choice)
    built: tuple[str, ...] = ()  # of norm_first and eps
    padding: Padding | None = None
    heads: int | None = None
    attribute: str = ""
    _readings: dict[int, Reading] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "__name__", self.attribute)
        object.__setattr__(self, "__qualname__", self.attribute)

    @property
    def options(self) -> tuple[str, ...]:
        return ("heads", *self.built, *(("key_lengths",) if self.padding else ()))

    def __call__(
        self, x: Any, weights: Mapping[str, Any], *, heads: int, key_lengths: Any = None, **built: Any
    ) -> Any:
        """x (B,L,M) -> (B,L,M). Raises UnsupportedCase for sizes that the module has not."""
        width, inner = x.shape[2], weights["b_1"].shape[0]
        if heads < 1 or width % heads:
            raise ValueError(f"{width} does not split into {heads} heads")
        if self.heads not in (None, heads):
            raise UnsupportedCase(f"the instance has {self.heads} heads")
        sizes = {
            "width": width,
            "heads": heads,
            "head_size": width // heads,
            "inner": inner,
            "causal": False,
            **built,
        }
        with self.builder.lent(sizes, x.dtype, x.device) as module:
            parameters = self._placed(module, weights, heads)
            given = {} if key_lengths is None or self.padding is None else {
                self.padding.parameter: self.padding(key_lengths, x)}  # fmt: skip

            def call(*tokens: Any, **keywords: Any) -> Any:
                return functional_call(module, parameters, tokens, {**keywords, **given})

            return self.calling(call, x, False)

    def _placed(self, module: torch.nn.Module, weights: Mapping[str, Any], heads: int) -> dict[str, Any]:
        shapes = {name: tuple(x.shape) for name, x in module.named_parameters()}
        own = {self.places.matrices[name]: weights[name].T.contiguous() for name in ("w_1", "w_2")}
        own |= {parameter: weights[name] for name, parameter in self.places.vectors.items()}
        for name, value in own.items():
            if tuple(value.shape) != shapes[name]:
                raise UnsupportedCase(f"{name} has shape {shapes[name]}, and {tuple(value.shape)} is given")
        attention = {letter: weights[f"w_{letter}"] for letter in "qkvo"}
        if heads not in self._readings:
            width = weights["w_q"].shape[1]
            self._readings[heads] = reading(module, self.told, width, self.choice, tuple(own))
        return {**own, **self._readings[heads].placed(module, attention, heads)}

    def plain(self, module: torch.nn.Module, width: int) -> Reading:
        """How the parameters of its attention are read."""
        others = (*self.places.matrices.values(), *self.places.vectors.values())
        return reading(module, self.told, width, self.choice, others)
