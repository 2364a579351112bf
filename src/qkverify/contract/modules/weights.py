"""Where the four matrices of multi-head attention are among a module's parameters: `reading` says, `Reading.placed` puts them.

A parameter holds one matrix or several: side by side, (q | k | v), or head by head, (q_1 k_1 v_1 | q_2 ...). It is (out,in), as
torch.nn.Linear has it, or (in,out). A name says which matrices it holds; the shape says which axis they lie along; where the
two leave a `Choice`, calls decide. No reading exchanges two matrices whose names say what they
are: a module that takes its keys for its values is wrong, and stays so.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from qkverify.contract.modules import weight_names
from qkverify.contract.modules.argument_roles import snake
from qkverify.errors import NothingVerified, UnsupportedCase, UsageError

WORDS = {"q": "query", "k": "key", "v": "value", "o": "the output's"}
CONSTANTS = {"zero": 0.0, "one": 1.0}
KEEP = "keep"


@dataclass(frozen=True)
class Piece:
    """One parameter: the letters of its matrices, which way it lies, and the one head that it is of, if it is of one."""

    parameter: str
    letters: str
    transposed: bool  # (out,in), as in torch.nn.Linear
    by_heads: bool = False
    head: int | None = None

    def words(self) -> str:
        """ "c_attn.weight is query, key and value, side by side, (out,in)"."""
        names = [WORDS[letter] for letter in self.letters]
        joined = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
        how = (", head by head" if self.by_heads else ", side by side") if len(names) > 1 else ""
        one = "" if self.head is None else " of one head"
        return f"{self.parameter} is {joined}{one}{how}, {'(out,in)' if self.transposed else '(in,out)'}"

    def value(self, weights: Mapping[str, Any], heads: int) -> Any:
        """What the parameter holds, of matrices (M,HD) by letter (the output's is (HD,M))."""
        parts = [weights[letter] for letter in self.letters]
        if self.head is not None:
            parts = [part.unflatten(1, (heads, -1))[:, self.head] for part in parts]
        if self.by_heads:
            split = [part.unflatten(1, (heads, -1)) for part in parts]  # (M,H,D) each
            joined = torch.cat(split, dim=2).flatten(1)  # (M,H*n*D)
        else:
            joined = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        return joined.T.contiguous() if self.transposed else joined.contiguous()


@dataclass(frozen=True)
class Choice:
    """What names and shapes leave open: whether fused matrices are mixed head by head, and how square ones lie."""

    by_heads: bool = False
    transposed: bool = False


@dataclass(frozen=True)
class Reading:
    """What every parameter of a module is: matrices, constants (zero for biases), or what is left as it is. `open` are the
    choices that names and shapes leave."""

    pieces: tuple[Piece, ...]
    constants: Mapping[str, float]
    open: tuple[Choice, ...] = (Choice(),)

    @property
    def letters(self) -> frozenset[str]:
        return frozenset(letter for piece in self.pieces for letter in piece.letters)

    def placed(self, module: torch.nn.Module, weights: Mapping[str, Any], heads: int) -> dict[str, Any]:
        """Every parameter by name. Raises UnsupportedCase where the matrices do not have the module's shapes."""
        shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
        values = {piece.parameter: piece.value(weights, heads) for piece in self.pieces}
        for name, value in values.items():
            if tuple(value.shape) != shapes.get(name):
                raise UnsupportedCase(
                    f"{name} has shape {shapes.get(name)}, and {tuple(value.shape)} is given"
                )
        like = weights["q"]
        constants = {name: like.new_full(shapes[name], number) for name, number in self.constants.items()}
        return {**values, **constants}


def reading(
    module: torch.nn.Module,
    told: Mapping[str, str],
    inner: int,
    choice: Choice = Choice(),
    others: Collection[str] = (),
) -> Reading:
    """How a module's parameters are read, without the `others` that are none of attention; `inner` is H D.

    Raises NothingVerified where a parameter has no meaning, UsageError for a word that is none.
    `told` are the user's words: parameter -> "qkv", "kv", "q", "o", "zero", "one" or "keep", with "head by head" or "(in,out)".
    """
    every = dict(module.named_parameters())
    _check(told, every)
    parameters = {name: parameter for name, parameter in every.items() if name not in others}
    matrices = [name for name, parameter in parameters.items() if parameter.ndim > 1]
    known = weight_names.numbered(matrices) | {
        n: letters for n in matrices if (letters := weight_names.roles(n))
    }
    pieces: list[Piece] = []
    constants: dict[str, float] = {}
    fused = square = False
    for name, parameter in parameters.items():
        first, _, how = told.get(name, "").partition(" ")
        letters = first or known.get(name, "")
        if first in (*CONSTANTS, KEEP):
            constants |= {name: CONSTANTS[first]} if first in CONSTANTS else {}
        elif letters:
            lies = _lies(module, name, how, len(letters) * inner)
            mixed = len(letters) > 1 and not how
            fused, square = fused or mixed, square or lies is None
            by_heads = choice.by_heads if mixed else "head by head" in how
            transposed = choice.transposed if lies is None else lies
            pieces.append(Piece(name, letters, transposed, by_heads, weight_names.head_of(name)))
        elif parameter.ndim == 1 and "bias" in snake(name.rpartition(".")[2]):
            constants[name] = 0.0
        else:
            raise NothingVerified(_unread(module, name, parameter))
    choices = product((False, True) if fused else (False,), (False, True) if square else (False,))
    return Reading(tuple(pieces), constants, tuple(Choice(*values) for values in choices))


def _lies(module: torch.nn.Module, name: str, word: str, joined: int) -> bool | None:
    """Whether a matrix is (out,in); None where only a call can tell."""
    if "(in,out)" in word or "(out,in)" in word:
        return "(out,in)" in word
    owner, _, leaf = name.rpartition(".")
    if isinstance(module.get_submodule(owner), torch.nn.Linear) and leaf == "weight":
        return True
    rows, columns = module.get_parameter(name).shape[:2]
    return None if rows == columns else (rows == joined)


def _check(told: Mapping[str, str], parameters: Mapping[str, Any]) -> None:
    for name, word in told.items():
        if name not in parameters:
            raise UsageError.unknown("parameter", name, parameters)
        first = word.partition(" ")[0]
        if first not in (*CONSTANTS, KEEP) and (
            not first or set(first) - set("qkvo") or len(set(first)) < len(first)
        ):
            raise UsageError(
                f'weights: {name!r} is {word!r}; it is one of "q", "k", "v", "o", several of them in their order ("qkv"), '
                '"zero", "one" or "keep", and after that "head by head", "(in,out)" or "(out,in)" if need be'
            )


def _unread(module: torch.nn.Module, name: str, parameter: Any) -> str:
    kind = type(module).__name__
    owner = name.rpartition(".")[0]
    if "norm" in type(module.get_submodule(owner)).__name__.lower():
        return (
            f"{kind} has a norm, {owner!r}, which multi_head_attention has not: not verified as it stands\n"
            "  verify the part of it that is attention alone"
        )
    return (
        f"{kind} has a parameter {name!r} of shape {tuple(parameter.shape)}, whose name does not say what it is\n"
        f"  say what it is: --weights {name}=WHAT, or in the file: "
        f"attention = qkverify.module({kind}, weights={{{name!r}: ...}})\n"
        '  one of "q", "k", "v", "o" (the output), "qkv" (side by side); "zero", "one" or "keep" for what is none of them'
    )
