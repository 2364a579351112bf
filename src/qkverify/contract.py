"""What an attention call means, as data, and what an implementation says about itself.

Dimension letters, used everywhere: B batch, H query heads, G key/value heads (H = G * group), Q query length, K key
length, D key size, E value size. Three literal tables carry the rules; the rest of this file reads them:

`OPTIONS`      the keyword arguments of an attention call and what each means;
`SEMANTICS`    where libraries differ legitimately, and the values each choice can take;
`CONVENTIONS`  how the libraries of the field name and lay out the same arguments.

The signature of a function is the list of what it offers: a parameter that is not there is not offered. What it does not
offer it refuses (`UnsupportedCase`), and sizes that do not fit one another raise an error, whichever: nothing is read past an
end, nothing broadcast by chance. What else is asked of each operation stands in `operations.DESCRIBED`.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, TypeVar

from qkverify import empty_rows, foreign_text
from qkverify.axes import LAYOUTS
from qkverify.errors import UnsupportedCase, UsageError
from qkverify.modules_used import FRAMEWORKS as FRAMEWORKS
from qkverify.modules_used import frameworks_used, unwrapped
from qkverify.operations import DESCRIBED

Function = TypeVar("Function", bound=Callable[..., Any])

OPTIONS: Mapping[str, str] = MappingProxyType(
    {
        "mask": "bool, broadcastable to (B,H,Q,K); True = may attend",
        "bias": "float, broadcastable to (B,H,Q,K); added to the scores",
        "causal": "bool; query i sees keys up to i (+ K - Q when aligned bottom-right)",
        "window": "(left, right), None = unbounded; keys within [i - left, i + right], aligned as causal is",
        "scale": "float, default D ** -0.5",
        "softcap": "float; c * tanh(scores / c), after scale, before bias and mask",
        "alibi_slopes": "(H,); adds -slope * distance",
        "key_lengths": "(B,) int; keys at and past the length are padding and are never read",
        "sinks": "(H,); one more logit per head that takes weight and gives nothing",
        "return_lse": "also return the log-sum-exp, natural logarithm, (B,H,Q); -inf on empty rows, or what stands for it",
    }
)

SEMANTICS: Mapping[str, tuple[tuple[str, ...], str]] = MappingProxyType(
    {
        "causal_alignment": (
            ("bottom-right", "top-left"),
            "the key that the first query may see last when Q != K",
        ),
        "empty_rows": (
            ("zero", "nan", "uniform", "uniform with gradients"),
            "the output of a query that sees no key, and whether it passes gradients on to query and key",
        ),
        "masked_values": (
            ("ignored", "read"),
            "whether NaN in a key or value that is invisible gets through",
        ),
        "deterministic": (("yes", "no"), "the same call twice gives the same bits"),
        "batch_invariant": (("yes", "no"), "an entry's bits do not depend on the rest of its batch"),
        "delta": (("weights", "output"), "rowsum(dP * P), or rowsum(dO * O) from the stored output"),
        "lse": (("natural", "base2"), "the logarithm of the log-sum-exp"),
        "empty_lse": (("-inf", "finite"), "the log-sum-exp of a query that sees no key"),
        "lse_gradient": (("yes", "no"), "the log-sum-exp has a gradient, as the output has"),
        "mismatched_sizes": (
            ("raise", "cut"),
            "sizes that do not fit one another raise, or what is too long is not looked at",
        ),
    }
)

# Operation -> its first parameters.
OPERATIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {name: tuple(one.parameters) for name, one in DESCRIBED.items()}
)

DTYPES = ("float64", "float32", "float16", "bfloat16")
DEVICES = ("cpu", "cuda")
NAME = 200  # characters of an implementation's name at most
SLOW = 0.1  # share of the usual examples: an interpreter's


@dataclass(frozen=True)
class Convention:
    """How one library of the field writes an attention call: `names` maps its parameters to ours."""

    marks: frozenset[str]  # parameters that tell this convention from the others
    names: Mapping[str, str]
    layout: str = "BHLD"
    combined_mask: bool = False  # one parameter takes the boolean mask or the bias
    exclusive: tuple[tuple[str, str], ...] = ()  # pairs of options that it refuses together
    requires: tuple[str, ...] = ()  # sizes that it accepts
    unbounded: int | None = (
        None  # how an open side of a window is written; None: a side longer than any sequence
    )
    semantics: Mapping[str, str] = field(default_factory=dict)


CONVENTIONS: Mapping[str, Convention] = MappingProxyType(
    {
        # torch.nn.functional.scaled_dot_product_attention
        "torch": Convention(
            marks=frozenset({"attn_mask", "is_causal", "dropout_p"}),
            names={
                "attn_mask": "mask",
                "is_causal": "causal",
                "scale": "scale",
                "enable_gqa": "grouped_heads",
                "dropout_p": "dropout",
            },
            combined_mask=True,
            exclusive=(("causal", "mask"), ("causal", "bias")),
        ),
        # jax.nn.dot_product_attention: (B, L, H, D), value size equal to key size
        "jax": Convention(
            marks=frozenset({"is_causal", "key_value_seq_lengths"}),
            names={
                "mask": "mask",
                "bias": "bias",
                "is_causal": "causal",
                "scale": "scale",
                "local_window_size": "window",
                "key_value_seq_lengths": "key_lengths",
                "return_residual": "return_lse",
            },
            layout="BLHD",
            requires=("E == D",),
        ),
        # flash_attn.flash_attn_func: (B, L, H, D)
        "flash-attn": Convention(
            marks=frozenset({"softmax_scale", "window_size"}),
            names={
                "causal": "causal",
                "softmax_scale": "scale",
                "window_size": "window",
                "softcap": "softcap",
                "alibi_slopes": "alibi_slopes",
                "dropout_p": "dropout",
                "max_seqlen_q": "longest_query",
                "max_seqlen_k": "longest_key",
            },
            layout="BLHD",
            unbounded=-1,
            semantics={"causal_alignment": "bottom-right"},
        ),
        # the Attention operator of ONNX (opset 23), four-dimensional inputs
        "onnx": Convention(
            marks=frozenset({"attn_mask", "is_causal", "softcap"}),
            names={"attn_mask": "mask", "is_causal": "causal", "scale": "scale", "softcap": "softcap"},
            combined_mask=True,
        ),
    }
)

# Other spellings of our own names, accepted in a function that follows none of the conventions above.
SPELLINGS: Mapping[str, str] = MappingProxyType(
    {
        "attn_mask": "mask",
        "attention_mask": "mask",
        "attn_bias": "bias",
        "is_causal": "causal",
        "softmax_scale": "scale",
        "sm_scale": "scale",
        "window_size": "window",
        "local_window_size": "window",
        "logit_cap": "softcap",
        "logits_soft_cap": "softcap",
        "seq_lens": "key_lengths",
        "kv_lengths": "key_lengths",
        "key_value_seq_lengths": "key_lengths",
        "enable_gqa": "grouped_heads",
        "dropout_p": "dropout",
        "dropout_rate": "dropout",
        "max_seqlen_q": "longest_query",
        "max_seqlen_k": "longest_key",
        "max_q": "longest_query",
        "max_k": "longest_key",
    }
)

# What a function may take besides the options of a problem. Not every call can be given it, so laws ask for it by name.
FURTHER = ("dropout", "longest_query", "longest_key")
ATTENTIONS = (
    "attention",
    "packed_attention",
    "cached_attention",
    "paged_attention",
)  # their options are attention's


@dataclass(frozen=True)
class Finding:
    """A recorded defect of somebody else's code. `folder` tells of it; `when` says of a `Problem` whether it can show there;
    `sentence` says in one line what is wrong; `listed` is its place in a file of known failures, where it stands in one.

    A failure of its law on problems of which `when` says no is none of the finding's: it counts as a failure.
    """

    folder: str
    when: Callable[[Any], bool] | None = None
    sentence: str = ""
    listed: str = ""

    def __str__(self) -> str:
        return self.folder

    def explains(self, problems: Sequence[Any]) -> bool:
        """Whether it can have shown in an example that called the implementation on these problems."""
        return self.when is None or any(self.when(problem) for problem in problems)


@dataclass(frozen=True, kw_only=True, eq=False)
class Implementation:
    """One function under test and all that it declares. `offers` holds canonical option names and "gradients", and
    "lse_gradient" where the log-sum-exp may have one."""

    name: str
    function: Callable[..., Any]
    operation: str = "attention"
    arrays: str = "numpy"
    dtypes: tuple[str, ...] = ("float32", "float64")
    devices: tuple[str, ...] = ("cpu",)
    layout: str = "BHLD"
    requires: tuple[str, ...] = ()
    exclusive: tuple[tuple[str, str], ...] = ()
    precision: Mapping[str, Any] = field(default_factory=dict)
    available: Callable[[str], str | None] | None = None
    vjp: Callable[..., Any] | None = None
    differentiable: bool | None = None
    findings: Mapping[str, Finding] = field(default_factory=dict)
    tile: tuple[int, ...] = ()
    effort: Mapping[str, float] = field(
        default_factory=dict
    )  # device -> share of the usual number of examples
    compiles: bool = False  # anew for every size
    returns: int | str | None = (
        None  # the part of its result that is the output: a number, a key or an attribute
    )
    neutral: Mapping[str, Any] = field(
        default_factory=dict
    )  # canonical option -> what is passed where a problem does not use it, because the default is not neutral
    result_dtypes: Mapping[str, str] = field(default_factory=dict)  # dtype -> wider dtype of the output
    refused_dtypes: Mapping[str, str] = field(
        default_factory=dict
    )  # dtype -> why it was found not to be taken
    inferred: tuple[str, ...] = ()  # those of `requires` that were found out
    requires_with: Mapping[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # option -> sizes that it was found to need
    remarks: tuple[str, ...] = ()  # sentences on what was found out, each printed once
    probed: bool = False  # whether its first calls were made
    semantics: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(
        default_factory=dict
    )  # canonical option -> the function's own parameter
    convention: str = "qkverify"
    offers: frozenset[str] = frozenset()
    unknown: tuple[str, ...] = ()  # its parameters that mean nothing here, and "**kwargs"; see `parameters`
    declared: bool = False  # by @implementation; an undeclared function's limits are found out
    summary: str = ""
    file: str = ""

    def slow(self, device: str) -> bool:
        """Whether one call takes so long there that problems must be small as well as few."""
        return self.effort.get(device, 1.0) <= SLOW

    def declared_precision(self, device: str, dtype: str) -> Any:
        """What is declared of a dtype on a device: the name of a precision model, a `Precision`, or None."""
        return self.precision.get(f"{dtype}-{device}", self.precision.get(dtype))

    def findings_at(self, device: str, dtype: str) -> dict[str, Finding]:
        """Law -> what is recorded of it on a device in a dtype; what names the place most closely counts.

        `findings` is keyed "law", "law[dtype]", "law[device]" or "law[device-dtype]".
        """
        places = ("", dtype, device, f"{device}-{dtype}")
        split = [(*key.rstrip("]").partition("[")[::2], known) for key, known in self.findings.items()]
        return {law: known for at in places for law, place, known in split if place == at}

    @property
    def not_offered(self) -> tuple[str, ...]:
        """Options of the operation that this implementation does not take."""
        every = (*OPTIONS, "gradients") if self.operation == "attention" else ("gradients",)
        return tuple(name for name in every if name not in self.offers)

    def accepts(self, sizes: Mapping[str, int]) -> str | None:
        """The first of `requires` that these sizes break, or None. Letters that are not in `sizes` are not judged."""
        return _first_broken(self.requires, sizes)

    def refuses(self, sizes: Mapping[str, int], options: Mapping[str, Any]) -> str | None:
        """What was found out of the sizes that a problem breaks, or None: it would raise for them."""
        rules = (
            *self.inferred,
            *(rule for name, some in self.requires_with.items() if name in options for rule in some),
        )
        return _first_broken(rules, sizes)

    def keywords(self, options: Mapping[str, Any], *, grouped: bool = False, size: int = 0) -> dict[str, Any]:
        """The call's keyword arguments under the function's own names and conventions.

        `options` are canonical and native; `size` is D, which a neutral scale needs. Raises UnsupportedCase for an option that
        the function does not take.
        """
        convention = CONVENTIONS.get(self.convention)
        # An option of attention that is off is left out, unless `neutral` says what switches it off.
        off = (None, False) if self.operation in ATTENTIONS else (None,)
        given = {name: value for name, value in options.items() if not any(value is x for x in off)}
        keywords: dict[str, Any] = {}
        for name, value in given.items():
            if name not in self.offers:
                raise UnsupportedCase(f"{self.name} does not offer {name}")
            if name == "window" and convention is not None:
                open_side = convention.unbounded if convention.unbounded is not None else 2**30
                value = tuple(open_side if side is None else side for side in value)
            own = self.parameters[name]
            if own in keywords:
                raise UnsupportedCase(f"{self.name} takes {name} through {own}, which is in use")
            keywords[own] = value
        if grouped and "grouped_heads" in self.parameters:
            keywords[self.parameters["grouped_heads"]] = True
        for name, value in self.neutral.items():
            standard = float(max(size, 1) ** -0.5) if value == STANDARD_SCALE else value
            keywords.setdefault(self.parameters[name], standard)
        return keywords

    @property
    def entry(self) -> Callable[..., Any]:
        """The function, returning what the contract knows of its result: the output, or (output, log-sum-exp)."""
        if self.returns is None:
            return self.function
        lse = self.parameters.get("return_lse")

        def entry(*arrays: Any, **keywords: Any) -> Any:
            result = self.function(*arrays, **keywords)
            if lse is not None and keywords.get(lse):
                return tuple(result)[:2] if isinstance(result, tuple | list) else result
            return part_of(result, self.returns)

        return entry


STANDARD_SCALE = "D ** -0.5"  # among the neutral values: it depends on the problem


def part_of(result: Any, which: int | str | None) -> Any:
    """One part of a result of several: by its number, its key or its attribute."""
    if which is None:
        return result
    if isinstance(which, int):
        return result[which]
    return result[which] if isinstance(result, Mapping) else getattr(result, which)


REGISTERED: list[Implementation] = []


def implementation(function: Function | None = None, **declared: Any) -> Any:
    """Declare a function as an implementation and return it unchanged. Everything is optional.

    name, operation, arrays ("numpy", "torch", "jax"), dtypes, devices, layout ("BHLD", "BLHD", "BLD" or "LD"), requires
    (expressions over the dimension letters that the sizes must satisfy), precision ({dtype: "fused" | "fused-fast-exp" |
    "eager" | "tf32" | Precision}, see `rounding.Precision`; the key "bfloat16-cpu" for one device, "bfloat16-gradients" where
    gradients round otherwise than the output does), available (device -> None, or the reason why not), vjp, differentiable,
    findings ({law: folder, or Finding}), tile (edges of its tiles), effort ({device: share of the usual examples}, where a
    call is slow there, as in an interpreter), compiles (whether each new size costs a compilation: few sizes are drawn),
    returns (of a function that returns several arrays, the number or name of the output), and every key of `SEMANTICS`;
    `empty_rows` may be a value for each way to hide keys, {"bias": "nan", "key_lengths": "zero"}. Raises UsageError for a
    word that is none of these.
    """

    def register(target: Function) -> Function:
        REGISTERED.append(replace(describe(target, **declared), declared=True))
        return target

    return register if function is None else register(function)


_FIELDS = {
    "name", "operation", "arrays", "dtypes", "devices", "layout", "requires", "exclusive", "precision", "available",
    "vjp", "differentiable", "findings", "tile", "effort", "compiles", "returns", "summary", "convention",
}  # fmt: skip


def describe(function: Callable[..., Any], **declared: Any) -> Implementation:
    """An `Implementation` from a function's signature and what is declared about it."""
    for word in declared:
        if word not in _FIELDS and word not in SEMANTICS:
            raise UsageError.unknown("declaration", word, _FIELDS | SEMANTICS.keys())
    names = parameter_names(function)
    operation = declared.get("operation") or operation_of(function, names)
    if operation not in OPERATIONS:
        raise UsageError.unknown("operation", operation, OPERATIONS)
    arrays = declared.get("arrays") or framework_of(function)
    if arrays not in FRAMEWORKS:
        raise UsageError.unknown("framework", arrays, FRAMEWORKS)
    style = declared.get("convention") or convention_of(names, arrays)
    convention = CONVENTIONS.get(style)
    parameters = options_of(names, convention, operation)
    unknown = unknown_among(names, parameters, operation)
    offers = set(parameters) - {"grouped_heads", *unknown}
    vjp = declared.get("vjp")
    by_itself = DESCRIBED[operation].differentiable and (arrays != "numpy" or vjp is not None)
    if declared.get("differentiable", by_itself):
        offers.add("gradients")
    semantics = _semantics({**(convention.semantics if convention else {}), **declared})
    if operation != "attention" and empty_rows.by_way(semantics.get("empty_rows", "")):
        raise UsageError(f"empty_rows: {operation} has one value, however keys are hidden")
    # A function of its own for gradients gives those of the output.
    if {"gradients", "return_lse"} <= offers and vjp is None and semantics.get("lse_gradient") != "no":
        offers.add("lse_gradient")
    module = inspect.getmodule(unwrapped(function))
    return Implementation(
        name=foreign_text.shown_line(
            declared.get("name") or f"{_module_name(function)}:{_plain_name(function)}", characters=NAME
        ),
        function=function,
        operation=operation,
        arrays=arrays,
        dtypes=tuple(
            _checked("dtype", d, DTYPES) for d in _several(declared.get("dtypes") or default_dtypes(arrays))
        ),
        devices=tuple(_checked("device", d, DEVICES) for d in _several(declared.get("devices", ("cpu",)))),
        layout=_checked(
            "layout", declared.get("layout") or (convention.layout if convention else "BHLD"), tuple(LAYOUTS)
        ),
        requires=_rules(declared.get("requires", convention.requires if convention else ())),
        exclusive=tuple(declared.get("exclusive", convention.exclusive if convention else ())),
        precision=_per_dtype(declared.get("precision", {})),
        available=declared.get("available"),
        vjp=vjp,
        differentiable=declared.get("differentiable"),
        findings={
            law: known if isinstance(known, Finding) else Finding(known)
            for law, known in declared.get("findings", {}).items()
        },
        tile=_sizes(declared.get("tile", ())),
        # JAX compiles every operation anew for every size, a third of a second each: fewer problems, of few sizes.
        effort=dict(declared.get("effort", dict.fromkeys(DEVICES, 0.1) if arrays == "jax" else {})),
        compiles=bool(declared.get("compiles", arrays == "jax")),
        returns=declared.get("returns"),
        semantics=semantics,
        parameters=parameters,
        convention=style,
        offers=frozenset(offers),
        unknown=(*unknown, *open_parameters(function)),
        summary=foreign_text.shown_line(declared.get("summary") or _first_line(function, module)),
        file=getattr(module, "__file__", "") or "",
    )


def completed(one: Implementation) -> Implementation:
    """With the `<name>_vjp` of the function's own module, which may stand below it there."""
    if one.vjp is not None or one.arrays != "numpy" or one.differentiable is False:
        return one
    module = sys.modules.get(getattr(unwrapped(one.function), "__module__", ""))
    vjp = getattr(module, f"{_plain_name(one.function)}_vjp", None)
    return one if vjp is None else replace(one, vjp=vjp, offers=one.offers | {"gradients"})


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
                f"{name} shows no signature, and its docstring states none; wrap it in a function"
            ) from None
        return re.findall(r"(?:^|,)\s*(\w+)", text.group(1))


def parameters_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a function by name. Raises ValueError if it shows no signature.

    A torch module takes anything, and its `forward` says what; so does a decorator that names no parameters, and the one function
    in its closure says what.
    """
    function = getattr(function, "forward", function)
    every = inspect.signature(function).parameters
    named = {name: p for name, p in every.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    if not every or named:
        return named
    enclosed = inspect.getclosurevars(function).nonlocals.values() if inspect.isfunction(function) else ()
    inside = [value for value in enclosed if inspect.isfunction(value) and value is not function]
    return parameters_of(inside[0]) if len(inside) == 1 else named


def operation_of(function: Callable[..., Any], names: Sequence[str]) -> str:
    """The operation that a function computes, read off its parameter names."""
    lowered = [name.lower() for name in names]
    for operation, required in OPERATIONS.items():
        if operation not in ("attention", "softmax") and tuple(lowered[: len(required)]) == required:
            return operation
    if len(lowered) >= 3 and [n[0] for n in lowered[:3]] == ["q", "k", "v"]:
        packed = len(lowered) >= 5 and all("cu_seq" in name for name in lowered[3:5])
        return "packed_attention" if packed else "attention"
    if "softmax" in _plain_name(function).lower():
        return "softmax"
    if lowered[:1] in (["scores"], ["logits"]):
        return "softmax"
    raise UsageError(
        f"cannot tell what {_plain_name(function)}({', '.join(names)}) computes: name its first parameters as one of\n"
        + "\n".join(
            f"  {operation}({', '.join(required)}, ...)" for operation, required in OPERATIONS.items()
        )
        + "\nor declare it: @implementation(operation=...); `qkverify list operations` says what each means"
    )


def framework_of(function: Callable[..., Any]) -> str:
    """The array framework that a function's code speaks of, NumPy where it speaks of none."""
    return frameworks_used(function)[0]


def convention_of(names: Sequence[str], arrays: str) -> str:
    """The convention whose marks all appear among the parameters; where two fit, the more specific one."""
    fitting = [name for name, convention in CONVENTIONS.items() if convention.marks <= set(names)]
    fitting.sort(key=lambda name: (name == arrays, len(CONVENTIONS[name].marks)))
    return fitting[-1] if fitting else "qkverify"


def options_of(names: Sequence[str], convention: Convention | None, operation: str) -> dict[str, str]:
    """Canonical option -> own parameter, for the options that a signature takes."""
    required = len(OPERATIONS[operation])
    table = convention.names if convention else {**SPELLINGS, **{name: name for name in (*OPTIONS, *FURTHER)}}
    if operation not in ATTENTIONS:
        return {name: name for name in names[required:]}
    found = {table[name]: name for name in names[required:] if name in table}
    if convention is not None and convention.combined_mask and "mask" in found:
        found["bias"] = found["mask"]
    return found


def unknown_among(names: Sequence[str], parameters: Mapping[str, str], operation: str) -> tuple[str, ...]:
    """The parameters of a function that no option of its operation stands for: no law gives them a value."""
    if operation in ATTENTIONS:
        known = set(parameters.values())
    else:
        known = {name for words in DESCRIBED[operation].options for name in words.split(", ")}
    return tuple(name for name in names[len(OPERATIONS[operation]) :] if name not in known)


def open_parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    """ "*args" and "**kwargs", as the function writes them: what they take, no signature says."""
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    try:
        parameters = inspect.signature(getattr(function, "forward", function)).parameters.values()
    except ValueError:  # a built-in without a signature
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


def _first_broken(rules: Sequence[str], sizes: Mapping[str, int]) -> str | None:
    """The first rule that these sizes break, of those whose letters are all among them."""
    for rule in rules:
        if letters(rule) <= sizes.keys() and not eval(compiled(rule), {"__builtins__": {}}, dict(sizes)):
            return rule
    return None


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
            raise UsageError(f"requires: {rule!r} is no expression: {error.msg}") from None
        unknown = sorted(letters(rule) - set("BHGQKDE"))
        if unknown or not all(isinstance(node, allowed) for node in ast.walk(tree)):
            raise UsageError(
                f"requires: {rule!r} may compare the dimension letters B, H, G, Q, K, D, E with numbers only"
            )
    return every


def _checked(what: str, asked: str, exists: Sequence[str]) -> str:
    if asked not in exists:
        raise UsageError.unknown(what, asked, exists)
    return asked


def _semantics(declared: Mapping[str, Any]) -> dict[str, str]:
    chosen = {}
    for name, (values, _) in SEMANTICS.items():
        given = declared.get(name)
        if isinstance(given, Mapping) and name == "empty_rows":
            for way, value in given.items():
                _checked("way to hide keys", way, empty_rows.WAYS)
                _checked(name, value, values)
            chosen[name] = empty_rows.spelled(given)
        elif given is not None:
            chosen[name] = _checked(name, {True: "yes", False: "no"}.get(given, given), values)
    return chosen


def _per_dtype(precision: Any) -> dict[str, Any]:
    return dict(precision) if isinstance(precision, Mapping) else dict.fromkeys(DTYPES, precision)


def _sizes(tile: int | Sequence[int]) -> tuple[int, ...]:
    return (tile,) if isinstance(tile, int) else tuple(tile)


def _module_name(function: Callable[..., Any]) -> str:
    """The module as the user knows it: a file that is loaded by its path carries a hash in its module's name."""
    return re.sub(r"_[0-9a-f]{8}$", "", str(getattr(unwrapped(function), "__module__", "")))


def _plain_name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _first_line(function: Callable[..., Any], module: Any) -> str:
    text = inspect.getdoc(function) or getattr(module, "__doc__", "") or ""
    return str(text).strip().partition("\n")[0]
