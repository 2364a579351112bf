"""The options by which a person says of a function what its code does not show; see `contract.adapters`, which checks them.

Their help stands here, so that `--help` loads no NumPy.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer

from qkverify.errors import UsageError

# Name -> (what is given, help).
OPTIONS: Mapping[str, tuple[str, str]] = {
    "operation": ("NAME", "what it computes: a name of `qkverify list operations`"),
    "arrays": ("NAME", "arrays that it takes: numpy, torch or jax"),
    "layout": ("AXES", "axes of query, key, value: BHLD, BLHD, LBHD, BLD, LBD or LD"),
    "returns": ("PART", "which of several results is the output: its number from 0, its key or its attribute"),
    "output": ("PARAMETER", "the parameter that it writes the output to"),
    "mask": ("KIND[:AXES]", "visible, hidden, int, int-hidden, float, float-hidden or additive; axes: BHQK, BQK, QK, BK, ..."),
    "always": ("OPTION", "an option that every call has: causal"),
    "requires": ("RULE", "sizes that it takes, such as 'G == H' (repeatable)"),
    "parameters": ("NAME=OPTION", "which option its parameter is, such as pad=mask (repeatable)"),
    "constants": ("NAME=VALUE", "what every call passes for a parameter, such as block_size=16 (repeatable)"),
    "weights": ("NAME=WHAT", "of a torch module: c_attn.weight=qkv, proj.weight=o (repeatable)"),
    "sizes": ("NAME=WHAT", "of a torch module: what an argument of its constructor is, n_embd=width (repeatable)"),
}  # fmt: skip


def adaptable(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command with these options. It gets the ones that are given, by name, as its argument `adapters`."""
    signature = inspect.signature(command, eval_str=True)
    kept = [parameter for parameter in signature.parameters.values() if parameter.name != "adapters"]
    options = [_parameter(name, metavar, text) for name, (metavar, text) in OPTIONS.items()]

    @functools.wraps(command)
    def called(**keywords: Any) -> Any:
        given = {name: keywords.pop(name) for name in OPTIONS}
        return command(**keywords, adapters={name: texts for name, texts in given.items() if texts})

    every = [*kept, *options]
    called.__signature__ = signature.replace(parameters=every)  # type: ignore[attr-defined]  # typer reads it
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in every}
    return called


def _parameter(name: str, metavar: str, text: str) -> inspect.Parameter:
    option = typer.Option(f"--{name}", metavar=metavar, help=text)
    annotation = Annotated[list[str] | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def with_adapters(targets: Sequence[str], given: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Targets with what the command line and pyproject.toml say of them, which then goes wherever a target goes.

    Options are about every function and module among the targets. Raises UsageError if there is none.
    """
    from qkverify.contract import adapters
    from qkverify.verification import settings

    words = adapters.of_texts(given)
    adapted = [adapters.joined(target, words) if ":" in target else target for target in targets]
    if words and not any(":" in target for target in targets):
        raise UsageError(
            f"{adapters.written(words)}: of what? Name the function: path/file.py:function {adapters.written(words)}"
        )
    return tuple(map(settings.read().adapted, adapted))
