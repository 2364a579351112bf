"""What a function's signature and module say: its parameters, operation, framework, sizes."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qkverify import foreign_text
from qkverify.contract import cos_sin, losses
from qkverify.contract.callables import behind, schema_of
from qkverify.contract.modules_used import frameworks_used, unwrapped
from qkverify.contract.operations import DESCRIBED
from qkverify.contract.options import ATTENTIONS, DTYPES, OPERATIONS
from qkverify.errors import UsageError


def parameter_names(function: Callable[..., Any]) -> list[str]:
    """Parameter names in order; a built-in without a signature is read off the first line of its docstring."""
    try:
        return list(parameters_of(function))
    except ValueError:
        text = re.search(
            rf"{re.escape(_plain_name(function))}\((.*?)\)\s*(?:->|$)", function.__doc__ or "", re.S | re.M
        )
        if text is None:
            name = foreign_text.shown_line(_plain_name(function))
            raise UsageError(
                f"{name} has no signature that Python can read, and its docstring states none; wrap it in a function"
            ) from None
        return re.findall(r"(?:^|,)\s*(\w+)", text.group(1))


def parameters_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a function by name. Raises ValueError if it shows no signature.

    A torch module takes anything, and its `forward` says what; an operator of torch has a schema; a decorator may name no
    parameters, and the one function in its closure says what.
    """
    if (parameters := schema_of(function)) is not None:
        return parameters
    function = behind(function)
    every = inspect.signature(function).parameters
    named = {name: p for name, p in every.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    if not every or named:
        return named
    enclosed = inspect.getclosurevars(function).nonlocals.values() if inspect.isfunction(function) else ()
    inside = [value for value in enclosed if inspect.isfunction(value) and value is not function]
    return parameters_of(inside[0]) if len(inside) == 1 else named


OUTPUTS = ("out", "output", "o", "result", "dst")


def output_parameter(function: Callable[..., Any]) -> str:
    """The parameter without a default, beside query, key and value, whose name is that of an output; "" if it has none."""
    try:
        parameters = parameters_of(function)
    except (ValueError, TypeError):
        return ""
    required = [name for name, p in parameters.items() if p.default is inspect.Parameter.empty]
    named = next((name for name in required if name.lower() in OUTPUTS), "")
    others = [name[0].lower() for name in required if name != named]
    return named if others[:3] == ["q", "k", "v"] else ""


def operation_of(function: Callable[..., Any], names: Sequence[str]) -> str:
    """The operation that a function computes, read off its parameter names."""
    lowered = [name.lower() for name in names]
    for operation, required in OPERATIONS.items():
        alone = operation not in ("attention", "softmax") and not DESCRIBED[operation].named
        if (alone and tuple(lowered[: len(required)]) == required) or _is_named(function, lowered, operation):
            return operation
    if count := cos_sin.reads(names):
        return ("rotary", "rotary_pair")[count - 1]
    if losses.is_cross_entropy(_plain_name(function), names):
        return "cross_entropy"
    if lowered[:1] == ["self"]:  # a method of arrays: the first is the query
        lowered[0] = "query"
    if len(lowered) >= 3 and [n.removeprefix("x")[:1] for n in lowered[:3]] == ["q", "k", "v"]:
        packed = len(lowered) >= 5 and all("cu_seq" in name for name in lowered[3:5])
        return "packed_attention" if packed else "attention"
    if "softmax" in _plain_name(function).lower() and not OTHER_THAN_SOFTMAX.search(
        _plain_name(function).lower()
    ):
        return "softmax"
    if lowered[:1] in (["scores"], ["logits"]) and not OTHER_THAN_SOFTMAX.search(
        _plain_name(function).lower()
    ):
        return "softmax"
    raise UsageError(
        f"cannot tell what {_plain_name(function)}({', '.join(names)}) computes. Name its first parameters as in one of these:\n"
        + "\n".join(
            f"  {operation}({', '.join(required)}, ...)" + ", by that name" * bool(DESCRIBED[operation].named)
            for operation, required in OPERATIONS.items()
        )
        + "\nor say it: --operation NAME, or @implementation(operation=...); `qkverify list operations` explains each"
    )


OTHER_THAN_SOFTMAX = re.compile(
    "log_?s|lse|entropy|loss|backward|bwd|grad|vjp|jac|gumbel|sparse|argmax|sample|top_?[kp]|sigmoid|relu|gelu|tanh|clip"
)


def _is_named(function: Callable[..., Any], lowered: Sequence[str], operation: str) -> bool:
    """Whether a function's name says that it is the operation, and its parameters after the first are called as that's."""
    described = DESCRIBED[operation]
    names = [(name, *described.spellings.get(name, ())) for name in OPERATIONS[operation]]
    return (
        named_after(_plain_name(function), operation)
        and len(lowered) >= len(names)
        and all(given in known for given, known in zip(lowered[1:], names[1:], strict=False))
    )


FURTHER_STEPS = re.compile(
    "add|resid|gelu|silu|swish|relu|gate|linear|proj|matmul|gemm(?!a)|drop|quant|fp8|int8|backward|bwd|grad|rope|rotary|group|batch|instance"
)


def named_after(name: str, operation: str) -> bool:
    """Whether a function or a class has the name of an operation, and of no further step: layernorm_linear is none."""
    plain = name.lower().replace("_", "")
    return any(word in plain for word in DESCRIBED[operation].named) and not FURTHER_STEPS.search(plain)


def framework_of(function: Callable[..., Any]) -> str:
    """The array framework that a function's code speaks of, NumPy where it speaks of none."""
    return frameworks_used(function)[0]


def unknown_among(names: Sequence[str], parameters: Mapping[str, str], operation: str) -> tuple[str, ...]:
    """The parameters of a function that no option of its operation stands for: no law gives them a value."""
    if operation in ATTENTIONS:
        known = set(parameters.values())
    else:
        described = {name for words in DESCRIBED[operation].options for name in words.split(", ")}
        known = {own for name, own in parameters.items() if name in described}
    further = (
        name for name in names[len(OPERATIONS[operation]) :] if not name.startswith("_")
    )  # those are nobody's to give
    return tuple(name for name in further if name not in known)


def open_parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    """ "*args" and "**kwargs", as the function writes them: what they take, no signature says."""
    if schema_of(function) is not None:
        return ()
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    try:
        parameters = inspect.signature(behind(function)).parameters.values()
    except (ValueError, TypeError):  # a built-in without a signature
        return ()
    return tuple(f"{stars[p.kind]}{p.name}" for p in parameters if p.kind in stars)


def default_dtypes(arrays: str) -> tuple[str, ...]:
    """The dtypes that an undeclared implementation is tried in. JAX computes in float64 only where x64 is enabled."""
    if arrays == "numpy":
        return ("float64", "float32")
    if arrays == "jax":
        enabled = bool(importlib.import_module("jax").config.jax_enable_x64)
        return DTYPES if enabled else DTYPES[1:]
    return DTYPES


@functools.lru_cache(maxsize=256)
def letters(rule: str) -> frozenset[str]:
    """The dimension letters that a rule speaks of."""
    return frozenset(node.id for node in ast.walk(ast.parse(rule, mode="eval")) if isinstance(node, ast.Name))


@functools.lru_cache(maxsize=256)
def compiled(rule: str) -> Any:
    """A rule as code: it is judged for every problem that is drawn."""
    return compile(rule, f"requires {rule!r}", "eval")


def _several(words: Sequence[str] | str) -> tuple[str, ...]:
    """One word alone is a list of one: ("float32") is a string in Python."""
    return (words,) if isinstance(words, str) else tuple(words)


def _rules(rules: Sequence[str] | str) -> tuple[str, ...]:
    every = _several(rules)
    allowed = (ast.Expression, ast.Compare, ast.BoolOp, ast.UnaryOp, ast.BinOp, ast.Name, ast.Constant, ast.Tuple,
               ast.List, ast.Load, ast.operator, ast.cmpop, ast.boolop, ast.unaryop)  # fmt: skip
    for rule in every:
        try:
            tree = ast.parse(rule, mode="eval")
        except SyntaxError as error:
            raise UsageError(f"requires: {rule!r} is not an expression: {error.msg}") from None
        unknown = sorted(letters(rule) - set("BHGQKDE"))
        if unknown or not all(isinstance(node, allowed) for node in ast.walk(tree)):
            raise UsageError(
                f"requires: {rule!r} may only compare the sizes B, H, G, Q, K, D, E with one another and with numbers"
            )
    return every


def _module_name(function: Callable[..., Any]) -> str:
    """The module as the user knows it: a file that is loaded by its path carries a hash in its module's name."""
    return re.sub(r"_[0-9a-f]{8}$", "", str(getattr(unwrapped(function), "__module__", "")))


def _plain_name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _first_line(function: Callable[..., Any], module: Any) -> str:
    text = inspect.getdoc(function) or getattr(module, "__doc__", "") or ""
    return str(text).strip().partition("\n")[0]
