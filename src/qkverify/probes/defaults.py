"""What is passed where a problem does not use an option, because the function's own default would not leave it unused."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from qkverify.contract import (
    EVERY_KEY,
    OPERATIONS,
    OPTIONS,
    SIGNATURE_STYLES,
    STANDARD_SCALE,
    Implementation,
    parameters_of,
)
from qkverify.contract.operations import DESCRIBED
from qkverify.errors import UsageError
from qkverify.probes.sentences import first_line

FAR = 2**30  # a side of a window, or a cap, that no score reaches
# Option -> what switches it off, the plainest first.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "mask": (None,), "bias": (None,), "causal": (False,), "window": (None, (FAR, FAR), (-1, -1), (None, None)),
    "scale": (STANDARD_SCALE,), "softcap": (None, 0.0, float(FAR)), "alibi_slopes": (None,), "key_lengths": (None,),
    "sinks": (None,), "return_lse": (False,), "dropout": (0.0, None),
}  # fmt: skip


HEADS = ("num_heads", "n_heads", "n_head", "nhead", "heads")
# Parameter -> what switches chance off.
CHANCE: Mapping[str, Any] = {
    "training": False, "is_training": False, "train": False, "deterministic": True, "inference": True,
    "dropout_rng": None, "rng": None, "prng_key": None, "dropout_key": None, "generator": None, "seed": None,
}  # fmt: skip


def with_constants(implementation: Implementation) -> Implementation:
    """With what every call of an undeclared function passes: what switches chance off, and one head where it wants a number.

    A function with an option of dropout draws by chance if it is asked to: its own switch is left alone.
    """
    if implementation.convention in SIGNATURE_STYLES:
        return implementation
    constants: dict[str, Any] = {}
    for name, parameter in signature(implementation).items():
        required = parameter.default is inspect.Parameter.empty
        if name in CHANCE and (required or "dropout" not in implementation.offers):
            if required or (isinstance(CHANCE[name], bool) and parameter.default is not CHANCE[name]):
                constants[name] = CHANCE[name]
        elif name in HEADS and required:
            constants[name] = 1
    offers = implementation.offers - ({"dropout"} if constants.keys() & CHANCE.keys() else set())
    known = tuple(name for name in implementation.unknown if name not in constants)
    constants |= implementation.constants
    return replace(implementation, constants=constants, offers=offers, unknown=known)


def with_one_head(implementation: Implementation) -> Implementation | None:
    """A function that splits the last axis into heads, given one; None if it has no parameter for their number."""
    name = next((name for name in signature(implementation) if name in HEADS), None)
    if name is None or len(implementation.layout) > 3 or name in implementation.constants:
        return None
    known = tuple(other for other in implementation.unknown if other != name)
    return replace(implementation, constants={**implementation.constants, name: 1}, unknown=known)


def constants_remark(implementation: Implementation) -> list[str]:
    """One sentence for each constant that nobody said."""
    whys = {True: "so that nothing is left to chance", False: "because arrays have one head"}
    return [
        f"{name}={value!r} is passed, {whys[name in CHANCE]}"
        for name, value in implementation.constants.items()
        if name not in implementation.adapters.get("constants", {})
    ]


def signature(implementation: Implementation) -> Mapping[str, inspect.Parameter]:
    """The parameters after those of the operation; none where the function shows no signature."""
    try:
        parameters = parameters_of(implementation.function)
    except (ValueError, TypeError):
        return {}
    parameters.pop(implementation.output_parameter, None)
    return dict(list(parameters.items())[len(OPERATIONS[implementation.operation]) :])


def passed(implementation: Implementation) -> dict[str, tuple[Any, ...]]:
    """Canonical option -> candidates for what switches it off, of the options whose default does not.

    Raises UsageError naming a required parameter that is no option of the contract.
    """
    canonical = {keyword: name for name, keyword in implementation.parameters.items() if name != "bias" or
                 implementation.parameters.get("mask") != keyword}  # fmt: skip
    candidates: dict[str, tuple[Any, ...]] = {}
    for name, parameter in signature(implementation).items():
        option = canonical.get(name, "")
        if name in implementation.constants:
            continue
        if parameter.default is inspect.Parameter.empty and option not in NEUTRAL:
            raise UsageError(_missing(implementation, name))
        if option in NEUTRAL and not _neutral(option, parameter.default):
            candidates[option] = NEUTRAL[option]
    return candidates


def _neutral(option: str, default: Any) -> bool:
    """Whether a default leaves the option unused."""
    if default is inspect.Parameter.empty:
        return False
    if default is None or default is False or isinstance(default, str):
        return True
    if isinstance(default, tuple | list):
        return all(side in (None, -1) for side in default)
    return isinstance(default, int | float) and default == 0


def with_first(implementation: Implementation, candidates: Mapping[str, tuple[Any, ...]]) -> Implementation:
    """Passing the plainest of the candidates."""
    return replace(implementation, neutral={name: values[0] for name, values in candidates.items()})


def switched_off(implementation: Implementation) -> Implementation:
    """As `with_first` of what `passed` says, with its remarks: of a function that is not called to find out."""
    with_neutral = with_first(implementation, passed(implementation))
    return replace(with_neutral, remarks=(*with_neutral.remarks, *remark(with_neutral)))


def remark(implementation: Implementation) -> list[str]:
    """One sentence for each option that is passed its neutral value."""
    parameters = signature(implementation)
    said = []
    for option, value in implementation.neutral.items():
        keyword = implementation.parameters[option]
        default = parameters[keyword].default
        if value == EVERY_KEY:
            said.append(
                f"{keyword} is required and may not be None: where a problem has none, it is one that hides nothing"
            )
            continue
        shown = STANDARD_SCALE if value == STANDARD_SCALE else repr(value)
        why = "it has no default" if default is inspect.Parameter.empty else f"its default is {default!r}"
        said.append(f"{keyword}={shown} is passed if a problem does not use {option}, because {why}")
    return said


def _missing(implementation: Implementation, name: str) -> str:
    function, operation = implementation.name.rpartition(":")[2], implementation.operation
    first = ", ".join(DESCRIBED[operation].parameters)
    return (
        f"{implementation.name} cannot be called: its parameter {name!r} has no default and is not an option of {operation}\n"
        f"  options: {', '.join(OPTIONS)}\n"
        f"  say what to pass (--constants {name}=VALUE) or which option it is (--parameters {name}=OPTION), "
        f"or verify a function that passes it: def {operation}({first}): return {function}({first}, {name}=...)"
    )


def without_module(
    implementation: Implementation, raises: Callable[..., BaseException | None]
) -> Implementation:
    """Without a parameter called dropout that takes no rate: a module, as in The Annotated Transformer."""
    if "dropout" not in implementation.offers:
        return implementation
    errors = [raises(dropout=rate) for rate in (0.5, 0.25)]
    if not all(isinstance(error, TypeError | AttributeError) for error in errors):
        return implementation
    keyword = implementation.parameters["dropout"]
    said = f"{keyword} does not accept a rate, so it is not verified: {first_line(errors[0])}"
    kept = {name: parameter for name, parameter in implementation.parameters.items() if name != "dropout"}
    return replace(implementation, parameters=kept, offers=implementation.offers - {"dropout"},
                   neutral={name: value for name, value in implementation.neutral.items() if name != "dropout"},
                   remarks=(*implementation.remarks, said))  # fmt: skip
