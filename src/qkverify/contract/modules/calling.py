"""How a module is called: which arguments are tokens, which one is a mask and what it means, and which part comes back.

    forward(x)                            self-attention
    forward(query, key, value, mask)      the tokens three times
    forward(hidden_states, attention_mask=None, output_attentions=False)      the first part of a tuple is the output

What a mask means no signature says: `MASKS` are the ways of the field. Arrays are (B,L,M) or, `batch_first` false, (L,B,M).
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from qkverify.contract.modules.argument_roles import CAUSAL, snake
from qkverify.errors import ContractError, NothingVerified

Visible = Any  # bool (L,L), True where a query sees a key
Given = Callable[[Visible, Any, int], Any]  # (visible, tokens, batch) -> the mask as the module takes it

_MASK = re.compile(r"mask|attn_bias|attention_bias")
_PADDING = re.compile(
    r"pad|valid_len|lengths?$|^(head|encoder|memory|cross|layer_head)_"
)  # no mask of (query, key) here
_NOT_TOKENS = re.compile(
    r"^(kv_)?cache|past|^pos|position|freqs|^cos$|^sin$|rotary|layer_|^step$|^start_pos$|^lens?$"
)


def _additive(lowest: Callable[[torch.dtype], float]) -> Callable[[Any, Any], Any]:
    def given(visible: Any, x: Any) -> Any:
        return torch.zeros(visible.shape, dtype=x.dtype, device=x.device).masked_fill(
            ~visible, lowest(x.dtype)
        )

    return given


KINDS: Mapping[str, Callable[[Any, Any], Any]] = {
    "bool, True where a token is seen": lambda visible, x: visible,
    "bool, True where a token is hidden": lambda visible, x: ~visible,
    "added to the scores, -inf where a token is hidden": _additive(lambda dtype: float("-inf")),
    "added to the scores, the lowest number where a token is hidden": _additive(
        lambda dtype: torch.finfo(dtype).min
    ),
    "int, 1 where a token is seen": lambda visible, x: visible.to(torch.int64),
    "float, 1 where a token is seen": lambda visible, x: visible.to(x.dtype),
}
AXES: Mapping[str, Callable[[Any, int], Any]] = {
    "(L,L)": lambda mask, batch: mask,
    "(B,L,L)": lambda mask, batch: mask.expand(batch, *mask.shape),
    "(B,1,L,L)": lambda mask, batch: mask.expand(batch, 1, *mask.shape),
    "(L,L,B)": lambda mask, batch: mask[..., None].expand(*mask.shape, batch),
}


@dataclass(frozen=True)
class Mask:
    """A reading of a module's mask: the parameter, its kind and its axes."""

    parameter: str
    kind: str
    axes: str

    def __call__(self, visible: Any, x: Any, batch: int) -> Any:
        return AXES[self.axes](KINDS[self.kind](visible, x), batch)

    def words(self) -> str:
        return f"{self.parameter} is a mask {self.axes}, {self.kind}"


@dataclass(frozen=True)
class Calling:
    """How a module is called with tokens. `tokens` are the arguments that take them; `flag` is a causal switch of `forward`."""

    tokens: tuple[str, ...]
    by_name: bool = False  # whether these are given by name
    batch_first: bool = True
    masks: tuple[str, ...] = ()  # parameters that are masks
    required_masks: tuple[str, ...] = ()
    flag: str | None = None
    mask: Mask | None = None
    returns: int | str | None = None

    def __call__(self, call: Callable[..., Any], x: Any, causal: bool) -> Any:
        """What `call(*tokens, **keywords)` returns for x (B,L,M), as (B,L,M)."""
        batch, length = x.shape[:2]
        tokens = x if self.batch_first else x.transpose(0, 1)
        keywords: dict[str, Any] = {name: None for name in self.required_masks}
        if self.mask is not None and (causal or self.mask.parameter in self.required_masks):
            everything = torch.ones(length, length, dtype=torch.bool, device=x.device)
            keywords[self.mask.parameter] = self.mask(everything.tril() if causal else everything, x, batch)
        elif self.flag is not None:
            keywords[self.flag] = causal
        named = dict.fromkeys(self.tokens, tokens) if self.by_name else {}
        output = part(call(*[tokens] * (len(self.tokens) - len(named)), **named, **keywords), self.returns)
        return output if self.batch_first else output.transpose(0, 1)


def part(returned: Any, which: int | str | None) -> Any:
    """One part of a result; the whole one where it has none."""
    if which is None:
        return returned
    return (
        returned[which]
        if isinstance(which, int) or isinstance(returned, Mapping)
        else getattr(returned, which)
    )


def part_of_shape(returned: Any, shape: tuple[int, ...]) -> int | str | None:
    """Where in a result the first array of this shape is; None for the result itself. Raises ContractError where none is."""
    if isinstance(returned, torch.Tensor):
        return None
    names: list[Any] = []
    if isinstance(returned, Mapping):
        names = list(returned)
    elif dataclasses.is_dataclass(returned):
        names = [field.name for field in dataclasses.fields(returned)]
    elif isinstance(returned, tuple | list):
        names = list(range(len(returned)))
    for name in names:
        if getattr(part(returned, name), "shape", None) == shape:
            which: int | str = name
            return which
    raise ContractError(f"a result of type {type(returned).__name__} without an array of shape {shape}")


def calling(module: torch.nn.Module) -> Calling:
    """How a module is called, as far as the signature of its `forward` shows.

    Raises NothingVerified for an argument that says nothing.
    """
    kind = type(module).__name__
    tokens: list[str] = []
    masks: list[str] = []
    required: list[str] = []
    flag, by_name = None, False
    for name, parameter in inspect.signature(module.forward).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        plain, needed = snake(name), parameter.default is inspect.Parameter.empty
        if _MASK.search(plain) and not _PADDING.search(plain):
            masks.append(name)
            required += [name] if needed else []
        elif CAUSAL.match(plain):
            flag = name
        elif needed and _PADDING.search(plain):
            required.append(name)
        elif needed and _NOT_TOKENS.search(plain):
            raise NothingVerified(
                f"{kind}.forward needs {name!r}, which is neither tokens nor a mask: not verified as it stands\n"
                f"  verify a module that passes it, or a function: def attention(query, key, value, ...)"
            )
        elif needed:
            tokens.append(name)
            by_name = parameter.kind is parameter.KEYWORD_ONLY
    if len(tokens) not in (1, 2, 3):
        raise NothingVerified(
            f"{kind}.forward takes {len(tokens)} required arguments that could be tokens; a module is called with x, or with "
            "query, key and value: not verified as it stands"
        )
    return Calling(tuple(tokens), by_name, masks=tuple(masks), required_masks=tuple(required), flag=flag)
