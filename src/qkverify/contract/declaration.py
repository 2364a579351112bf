"""One function under test and all that it declares: `Implementation` and the decorator that makes it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from qkverify import foreign_text
from qkverify.contract import adapters, cos_sin, empty_rows, fixed_parameters, frameworks, losses, mask_forms
from qkverify.contract.modules_used import unwrapped
from qkverify.contract.operations import DESCRIBED
from qkverify.contract.options import (
    ATTENTIONS,
    DEVICES,
    DTYPES,
    EVERY_KEY,
    FURTHER,
    OPERATIONS,
    OPTIONS,
    SEMANTICS,
    SLOW,
    STANDARD_SCALE,
    Finding,
)
from qkverify.contract.signature_styles import SIGNATURE_STYLES, options_of, signature_style_of
from qkverify.contract.signatures import (
    _first_line,
    _module_name,
    _plain_name,
    _rules,
    _several,
    compiled,
    default_dtypes,
    framework_of,
    letters,
    open_parameters,
    operation_of,
    output_parameter,
    parameter_names,
    parameters_of,
    unknown_among,
)
from qkverify.errors import UnsupportedCase, UsageError

Function = TypeVar("Function", bound=Callable[..., Any])


NAME = 200  # characters of an implementation's name at most


@dataclass(frozen=True, kw_only=True, eq=False)
class Implementation:
    """One function under test, with everything that it declares.

    `offers` are the options that it takes, and "gradients" and "lse_gradient" (of the log-sum-exp) if it has them."""

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
    not_together: tuple[tuple[str, str], ...] = ()  # those of `exclusive` that were found out
    open_side: int | None = (
        None  # what stands for an open side of a window, if a library's style does not say it
    )
    remarks: tuple[str, ...] = ()  # sentences on what was found out, each printed once
    probed: bool = False  # whether its first calls were made
    size_limits: Mapping[str, tuple[int, int]] = field(
        default_factory=dict
    )  # size, or "causal", -> the least and the most that it takes, of another operation than attention
    mask_form: str = ""  # as in `mask_forms`; nothing for the contract's own
    always: tuple[str, ...] = ()  # options that every call of it has: "causal"
    constants: Mapping[str, Any] = field(default_factory=dict)  # parameter -> what every call passes for it
    output_parameter: str = ""  # an array of its signature that it writes the output to
    semantics: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(
        default_factory=dict
    )  # canonical option -> the function's own parameter
    convention: str = "qkverify"
    offers: frozenset[str] = frozenset()
    unknown: tuple[str, ...] = ()  # its parameters that mean nothing here, and "**kwargs"; see `parameters`
    declared: bool = False  # by @implementation; an undeclared function's limits are found out
    summary: str = ""
    file: str = ""  # of the function
    declared_in: str = ""  # the file of the @implementation, which may be another
    adapters: Mapping[str, Any] = field(
        default_factory=dict
    )  # what was said of it beside its code, where it has no @implementation; see `adapters`

    @property
    def home(self) -> str:
        """The file in which another process finds it again."""
        return self.declared_in or self.file

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

    def clamped(self, letter: str, size: int) -> int:
        """The size itself, or the nearest that lies within `size_limits`."""
        least, most = self.size_limits.get(letter, (size, size))
        return min(max(size, least), most)

    @property
    def named_pairs(self) -> tuple[tuple[str, str], ...]:
        """`not_together`, by the names of its parameters."""
        return tuple((self.parameters.get(a, a), self.parameters.get(b, b)) for a, b in self.not_together)

    def refuses(self, sizes: Mapping[str, int], options: Mapping[str, Any]) -> str | None:
        """What was found out and a problem breaks, of sizes and of pairs of options, or None: it would raise for it."""
        for pair, own in zip(self.not_together, self.named_pairs, strict=True):
            if all(options.get(name) is not None and options.get(name) is not False for name in pair):
                return f"{own[0]} is left out where {own[1]} is given"
        rules = (
            *self.inferred,
            *(
                rule
                for name, rules_of_option in self.requires_with.items()
                if name in options
                for rule in rules_of_option
            ),
        )
        return _first_broken(rules, sizes)

    def keywords(self, options: Mapping[str, Any], *, grouped: bool = False, size: int = 0) -> dict[str, Any]:
        """The call's keyword arguments under the function's own names and conventions.

        `options` are canonical and native; `size` is D, which a neutral scale needs. Raises UnsupportedCase for an option that
        the function does not take.
        """
        for name in self.always:
            if not options.get(name):
                raise UnsupportedCase(f"{self.name} is always {name}")
        # An option of attention that is off is left out, unless `neutral` says what switches it off.
        off = (None, False) if self.operation in ATTENTIONS else (None,)
        given = {name: value for name, value in options.items() if not any(value is x for x in off)}
        keywords: dict[str, Any] = {}
        for name, value in given.items():
            if name not in self.offers:
                raise UnsupportedCase(f"{self.name} does not offer {name}")
            if name == "window":
                value = tuple(self._open_side if side is None else side for side in value)
            if name in self.always and name not in self.parameters:
                continue
            parameter = self.parameters[name]
            if parameter in keywords:
                raise UnsupportedCase(
                    f"{self.name} takes {name} through its parameter {parameter}, which this call uses already"
                )
            keywords[parameter] = value
        if grouped and "grouped_heads" in self.parameters:
            keywords[self.parameters["grouped_heads"]] = True
        for name, value in self.neutral.items():
            standard = float(max(size, 1) ** -0.5) if value == STANDARD_SCALE else value
            if value != EVERY_KEY:  # the run makes it
                keywords.setdefault(self.parameters[name], standard)
        every = {
            n: size if value == fixed_parameters.LAST_AXIS else value for n, value in self.constants.items()
        }
        return {**every, **keywords}

    @property
    def _open_side(self) -> int | None:
        """What stands for an open side of a window: of a library's style its own, else as it was found out."""
        style = SIGNATURE_STYLES.get(self.convention)
        if style is None:
            return self.open_side
        return style.unbounded if style.unbounded is not None else 2**30

    def keywords_of_vjp(self, keywords: Mapping[str, Any]) -> dict[str, Any]:
        """Keywords of a call, for its gradient function `vjp`: what every call passes may be of the forward pass alone."""
        if self.vjp is None or not self.constants:
            return dict(keywords)
        takes_all = any(mark.startswith("**") for mark in open_parameters(self.vjp))
        kept = {*keywords} if takes_all else {*parameter_names(self.vjp)}
        return {name: value for name, value in keywords.items() if name in kept or name not in self.constants}

    @property
    def entry(self) -> Callable[..., Any]:
        """The function, returning what the contract knows of its result: the output, or (output, log-sum-exp)."""
        if self.output_parameter:
            return self._writing
        if self.returns is None:
            return self.function
        lse = self.parameters.get("return_lse")

        def entry(*arrays: Any, **keywords: Any) -> Any:
            result = self.function(*arrays, **keywords)
            if lse is not None and keywords.get(lse):
                return tuple(result)[:2] if isinstance(result, tuple | list) else result
            return part_of(result, self.returns)

        return entry

    def _writing(self, query: Any, key: Any, value: Any, **keywords: Any) -> Any:
        """The array that a function with an output parameter has written, which was NaN before the call."""
        output = frameworks.get(self.arrays).filled((*query.shape[:-1], value.shape[-1]), float("nan"), query)
        arguments = [query, key, value]
        at = parameter_names(self.function).index(self.output_parameter)
        if at <= len(arguments):
            arguments.insert(at, output)
        else:
            keywords[self.output_parameter] = output
        self.function(*arguments, **keywords)
        return output


def part_of(result: Any, which: int | str | None) -> Any:
    """One part of a result of several: by its number, its key or its attribute."""
    if which is None:
        return result
    if isinstance(which, int):
        return result[which]
    return result[which] if isinstance(result, Mapping) else getattr(result, which)


REGISTERED: list[Implementation] = []


def implementation(function: Function | None = None, **declared: Any) -> Any:
    """Declare a function as an implementation, and return the function unchanged. Everything is optional.

    - `name`, `summary`: how it is listed
    - `operation`: what it computes; otherwise the names of its first parameters say so
    - `arrays`: "numpy", "torch" or "jax"
    - `dtypes`, `devices`: where it runs, such as `("float32", "bfloat16")` and `("cpu", "cuda")`
    - `available`: a function from a device to None, or to the reason why it cannot run there
    - `layout`: "BHLD", "BLHD", "BLD" (one head) or "LD" (one head of one batch entry)
    - `requires`: conditions on the sizes, such as `("G == H", "K >= 1")`
    - `exclusive`: pairs of options that cannot be used together
    - `precision`: for each dtype "fused", "fused-fast-exp", "eager", "tf32" or a `Precision`; the key "bfloat16-cpu" is for one
      device, "bfloat16-gradients" for gradients that round differently
    - `returns`: which of several results is the output, by number or name
    - `output`: the parameter that it writes the output to, where it returns none
    - `mask`: what a mask is, such as "hidden:BK" (see `contract.mask_forms`)
    - `always`: options that every call of it has: "causal"
    - `parameters`: its own parameter -> the option that it is, such as `{"pad": "mask"}`
    - `constants`: parameter -> what every call passes for it, such as `{"block_size": 16}`
    - `vjp`: a function of query, key, value and upstream gradient that returns the gradients
    - `differentiable`: whether it has gradients
    - `convention`: the library whose parameter names it follows
    - `findings`: for each law with a known failure a folder, or a `Finding`
    - `tile`: the sizes of its tiles, so that problems with lengths at their edges are generated
    - `effort`: for each device the share of the usual examples, if calls are slow there; 3 are left in any case
    - `compiles`: whether each new size costs a compilation; then few sizes are generated
    - every convention in which libraries differ, such as `causal_alignment="bottom-right"`; `empty_rows` may have a value for
      each way to hide keys: `{"bias": "nan", "key_lengths": "zero"}`

    Of a class or an instance of torch.nn.Module: `weights`, `sizes` and `operation`, as `qkverify.module` takes them.

    Raises UsageError for any other word, and for a value that does not exist.
    """

    caller = sys._getframe(1).f_globals.get("__file__") or ""

    def register(target: Function) -> Function:
        from qkverify.contract import modules  # here: it needs this module

        if modules.is_module(target):
            described = modules.adapted(modules.module(target), declared)
        else:
            described = replace(describe(target, **declared), declared=True)
        REGISTERED.append(replace(described, declared_in=caller))
        return target

    return register if function is None else register(function)


_FIELDS = {
    "name", "dtypes", "devices", "exclusive", "precision", "available",
    "vjp", "differentiable", "findings", "tile", "effort", "compiles", "summary", "convention",
    *(name for name, adapter in adapters.ADAPTERS.items() if not adapter.of_modules),
}  # fmt: skip


def describe(function: Callable[..., Any], **declared: Any) -> Implementation:
    """An `Implementation` from a function's signature and what is declared about it."""
    for word in declared:
        if word not in _FIELDS and word not in SEMANTICS:
            raise UsageError.unknown("declaration", word, _FIELDS | SEMANTICS.keys())
    declared = declared | adapters.checked(
        {word: value for word, value in declared.items() if word in adapters.ADAPTERS and value}
    )
    signature = parameter_names(function)
    written = declared["output"] if "output" in declared else output_parameter(function)
    names = [name for name in signature if name != written]
    operation = declared.get("operation") or operation_of(function, names)
    arrays = declared.get("arrays") or framework_of(function)
    if (count := cos_sin.reads(names)) and operation in ("rotary", "rotary_pair"):
        names = [
            *OPERATIONS[operation],
            *(name for name in names[count + 2 :] if name not in ("position_ids", "unsqueeze_dim")),
        ]
        function = cos_sin.OfPositions(function, arrays, cos_sin.Tables())
    style = declared.get("convention") or signature_style_of(names, arrays)
    convention = SIGNATURE_STYLES.get(style)
    parameters = options_of(names, convention, operation)
    renamed, passed = declared.get("parameters") or {}, declared.get("constants") or {}
    _check_parameters(function, names, {**renamed, **passed})
    parameters = {name: own for name, own in parameters.items() if own not in {**renamed, **passed}}
    parameters |= {_option(option, operation): own for own, option in renamed.items()}
    constants = _constants(function, operation) | passed
    spelled = {name for name in names if name.lower() in fixed_parameters.known(operation)}
    unknown = tuple(
        name
        for name in unknown_among(names, parameters, operation)
        if name not in {"reduction", *passed, *spelled}
    )
    parameters = {name: own for name, own in parameters.items() if own not in spelled}
    offers = set(parameters) - {"grouped_heads", "reduction", *unknown}
    always = declared.get("always", ())
    offers |= {*always}
    mask_form = mask_forms.checked(declared["mask"]) if declared.get("mask") else ""
    if declared.get("mask") and "mask" not in parameters:
        raise UsageError(f"mask: none of the parameters {', '.join(names)} is known to be a mask\n"
                         '  say which: parameters={"NAME": "mask"} (--parameters NAME=mask)')  # fmt: skip
    if mask_form.startswith("additive") and "mask" in parameters:
        parameters.setdefault("bias", parameters["mask"])
        offers.add("bias")
    vjp = declared.get("vjp")
    by_itself = DESCRIBED[operation].differentiable and (arrays != "numpy" or vjp is not None) and not written
    if declared.get("differentiable", by_itself):
        offers.add("gradients")
    semantics = _semantics({**(convention.semantics if convention else {}), **declared})
    if operation != "attention" and empty_rows.by_way(semantics.get("empty_rows", "")):
        raise UsageError(f"empty_rows: for {operation}, give one value, not one for each way to hide keys")
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
        layout=declared.get("layout") or (convention.layout if convention else "BHLD"),
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
        mask_form=mask_form,
        always=always,
        output_parameter=written,
        constants=constants,
        semantics=semantics,
        parameters=parameters,
        convention=style,
        offers=frozenset(offers),
        unknown=(*unknown, *open_parameters(function)),
        summary=foreign_text.shown_line(declared.get("summary") or _first_line(function, module)),
        file=getattr(module, "__file__", "") or "",
    )


def with_defaults(implementation: Implementation) -> Implementation:
    """With the `<name>_vjp` of the function's own module, which may stand below it there."""
    if (
        implementation.vjp is not None
        or implementation.arrays != "numpy"
        or implementation.differentiable is False
    ):
        return implementation
    module = sys.modules.get(getattr(unwrapped(implementation.function), "__module__", ""))
    vjp = getattr(module, f"{_plain_name(implementation.function)}_vjp", None)
    return (
        implementation
        if vjp is None
        else replace(implementation, vjp=vjp, offers=implementation.offers | {"gradients"})
    )


def _first_broken(rules: Sequence[str], sizes: Mapping[str, int]) -> str | None:
    """The first rule that these sizes break, of those whose letters are all among them."""
    for rule in rules:
        if letters(rule) <= sizes.keys() and not eval(compiled(rule), {"__builtins__": {}}, dict(sizes)):
            return rule
    return None


def _checked(what: str, name: str, exists: Sequence[str]) -> str:
    if name not in exists:
        raise UsageError.unknown(what, name, exists)
    return name


def _semantics(declared: Mapping[str, Any]) -> dict[str, str]:
    chosen = {}
    for name, (values, _) in SEMANTICS.items():
        given = declared.get(name)
        if isinstance(given, Mapping) and name == "empty_rows":
            for way, value in given.items():
                if way in empty_rows.PAIRS:
                    _checked(f"empty_rows of {way}", value, (empty_rows.UNDECIDED,))
                    continue
                _checked("way to hide keys", way, empty_rows.WAYS)
                _checked(name, value, values)
            chosen[name] = empty_rows.spelled(given)
        elif given is not None:
            chosen[name] = _checked(name, {True: "yes", False: "no"}.get(given, given), values)
    return chosen


def _check_parameters(function: Callable[..., Any], names: Sequence[str], said: Mapping[str, Any]) -> None:
    """Raise UsageError for a parameter that the function has not."""
    for name in said:
        if name not in names and not any(mark.startswith("**") for mark in open_parameters(function)):
            raise UsageError.unknown("parameter", name, names)


def _constants(function: Callable[..., Any], operation: str) -> dict[str, Any]:
    """What every call passes, because the function's own default is another operation."""
    if operation == "cross_entropy":
        return losses.constants(parameters_of(function))
    if operation not in fixed_parameters.FIXED:
        return {}
    try:
        return fixed_parameters.constants(parameters_of(function), operation)
    except ValueError:  # a built-in without a signature
        return {}


def _option(name: str, operation: str) -> str:
    """The option of an operation. Raises UsageError."""
    if operation in ATTENTIONS:
        return _checked("option", name, (*OPTIONS, *FURTHER))
    described = [word for words in DESCRIBED[operation].options for word in words.split(", ")]
    return _checked("option", name, described)


def _per_dtype(precision: Any) -> dict[str, Any]:
    return dict(precision) if isinstance(precision, Mapping) else dict.fromkeys(DTYPES, precision)


def _sizes(tile: int | Sequence[int]) -> tuple[int, ...]:
    return (tile,) if isinstance(tile, int) else tuple(tile)
