"""The adapter of a function that `qkverify verify` cannot call as it is: our parameters in front, its own call behind."""

from __future__ import annotations

from qkverify.cli.init.candidates import Candidate, module_of
from qkverify.cli.init.templates import filled
from qkverify.contract import OPTIONS, SIGNATURE_STYLES, options_of, signature_style_of

FILE = "qkverify_adapter.py"
DTYPES = {"numpy": '"float32", "float64"', "torch": '"float32"', "jax": '"float32"'}


def source(candidate: Candidate) -> str:
    """The file. What qkverify cannot know stands in it as a name in capitals that is to be filled in."""
    taken = _options(candidate)
    absent = {name: "False" if name in ("causal", "return_lse") else "None" for name in taken}
    options = "".join(
        f", {name}={candidate.defaults.get(parameter, absent[name])}" for name, parameter in taken.items()
    )
    convention = SIGNATURE_STYLES.get(signature_style_of(candidate.parameters, candidate.arrays))
    layout = f', layout="{convention.layout}"' if convention and convention.layout != "BHLD" else ""
    return filled(
        "adapter.py",
        target=f"{candidate.file}:{candidate.name}",
        imports=f"from {module_of(candidate.file)} import {candidate.name}",
        made=_made(candidate),
        arrays=candidate.arrays,
        dtypes=DTYPES[candidate.arrays],
        layout=layout,
        options=f", *{options}" if options else "",
        body=f"    return {_call(candidate, taken)}",
    )


def to_fill_in(candidate: Candidate) -> list[str]:
    """What the adapter leaves to its reader."""
    made = [f"how {candidate.name} is made"] if candidate.method else []
    return made + [f"{name.upper()}, which {candidate.name} requires" for name in candidate.unknown]


def _options(candidate: Candidate) -> dict[str, str]:
    """Our name of each option that it takes -> its own; a parameter that stands for two is taken once."""
    rest = [name for at, name in enumerate(candidate.parameters) if not 0 <= at - candidate.first < 3]
    convention = SIGNATURE_STYLES.get(signature_style_of(candidate.parameters, candidate.arrays))
    taken: dict[str, str] = {}
    for name, parameter in options_of(["query", "key", "value", *rest], convention, "attention").items():
        if name in OPTIONS and parameter not in taken.values():
            taken[name] = parameter
    return taken


def _made(candidate: Candidate) -> str:
    lines = [f"# {name.upper()} =  fill in: yours requires it" for name in candidate.unknown]
    if candidate.method:
        lines.append(f"module = {candidate.name}()  # fill in what yours is made with")
    return "\n" + "\n".join(lines) + "\n" if lines else ""


def _call(candidate: Candidate, options: dict[str, str]) -> str:
    inputs = ["query", "key", "value"]
    if candidate.first:
        names = candidate.parameters[candidate.first : candidate.first + 3]
        inputs = [f"{parameter}={name}" for parameter, name in zip(names, inputs, strict=True)]
    given = [f"{parameter}={name}" for name, parameter in options.items()]
    given += [f"{name}={name.upper()}" for name in candidate.unknown]
    return f"{'module' if candidate.method else candidate.name}({', '.join(inputs + given)})"
