"""What a person is told of a first call: what was found out, or what does not fit, with the remedy."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qkverify import foreign_text
from qkverify.contract import EVERY_KEY, Implementation, adapters, axes, frameworks
from qkverify.probes.plain import Attempt

LONGEST = 120  # characters of a foreign error that are shown


def first_line(error: BaseException | None) -> str:
    """ "TypeError: ...", the first line of an exception, shortened."""
    text = "" if error is None else foreign_text.shown(error).partition("\n")[0]
    text = foreign_text.shown_line(text, characters=LONGEST)
    return f"{foreign_text.type_name(error)}: {text}" if text else foreign_text.type_name(error)


def adapted(before: Implementation, after: Implementation, fit: Attempt) -> list[str]:
    """The framework, the layout and the part of the result that were found out."""
    said = []
    if after.arrays != before.arrays:
        said.append(f"takes {after.arrays} arrays, as a first call showed")
    if after.devices != before.devices:
        said.append(f"takes no arrays on the CPU, so it is verified on {after.devices[0]}")
    if after.layout != before.layout:
        only = {"BLD": "; verified with one head", "LD": "; verified with one batch entry and one head"}
        said.append(f"arrays are {axes.WORDS[after.layout]}{only.get(after.layout, '')}")
    if after.always and not before.always:
        said.append(
            f"always {' and '.join(after.always)}: it raises an error if it is asked for anything else"
        )
    if after.output_parameter:
        said.append(
            f"writes its output to the parameter {after.output_parameter}, which is NaN before the call"
        )
    if after.returns is not None:
        said.append(
            f"returns {_kind(fit.returned)}: {_part(after.returns)} is the output and is verified; the rest is not"
        )
    return said


def as_declared(before: Implementation, after: Implementation) -> list[str]:
    """What declares what was found out: a line above the function, and what is written behind it on a command line."""
    words: dict[str, Any] = dict(before.adapters)
    words |= {"arrays": after.arrays} if after.arrays != before.arrays else {}
    words |= {"layout": after.layout} if after.layout != before.layout else {}
    words |= {"returns": after.returns} if after.returns is not None else {}
    words |= {"mask": after.mask_form} if after.mask_form else {}
    words |= {"always": after.always} if after.always else {}
    words |= {"output": after.output_parameter} if after.output_parameter else {}
    words |= {"constants": dict(after.constants)} if after.constants else {}
    if words.keys() <= before.adapters.keys() | {"arrays"} or EVERY_KEY in after.neutral.values():
        return []  # nothing new, or what is passed besides cannot be declared
    command_line = adapters.written(words)
    words |= {"requires": (*words.get("requires", ()), *after.inferred)} if after.inferred else {}
    return [f"to declare this: @implementation({adapters.as_keywords(words)})",
            f"or, behind the target on a command line: {command_line}"]  # fmt: skip


def several(attempt: Attempt, which: int | str) -> str:
    """Of a declared implementation that returns more than the output."""
    return (
        f"{attempt.implementation.name} returns {_kind(attempt.returned)}, but only the output is expected: "
        f"declare @implementation(returns={which!r})"
    )


def wider(dtypes: Mapping[str, str]) -> list[str]:
    by_result: dict[str, list[str]] = {}
    for dtype, result in dtypes.items():
        by_result.setdefault(result, []).append(dtype)
    return [f"returns {result} for {' and '.join(given)} input: judged within the bounds of the input's dtype; if that is not "
            "intended, cast it: .astype(query.dtype), .to(query.dtype)" for result, given in by_result.items()]  # fmt: skip


RESULT = "its result is"  # how the reason begins where a dtype is taken, and computed in another


def refused(dtypes: Mapping[str, str]) -> list[str]:
    return [
        f"{dtype} is not verified: {reason}"
        if reason.startswith(RESULT)
        else f"{dtype} is refused, so it is not verified: {reason}"
        for dtype, reason in dtypes.items()
    ]


def limited(rules: Sequence[str], error: BaseException | None, words: str = "") -> str:
    said = f"{words} ({', '.join(rules)})" if words and rules else words or ", ".join(rules)
    return f"{said}, else it raises {first_line(error)}"


def misfit(implementation: Implementation, attempts: Sequence[Attempt]) -> str:
    """Why no call gave an output, what the plainest call was, and what can be done."""
    returned = [attempt for attempt in attempts if attempt.error is None]
    plain = [attempt for attempt in attempts if attempt.problem.sizes["G"] == attempt.problem.sizes["H"]]
    if returned:
        shown = next((attempt for attempt in plain if attempt.error is None), returned[0])
        s = shown.problem.sizes
        expected = tuple(
            axes.to_function(
                shown.problem.query[..., :1].repeat(s["E"], -1), shown.implementation.layout
            ).shape
        )
        what = f"returns {_kind(shown.returned)}; expected an array of {shown.implementation.arrays} of shape {expected}"
        remedy = "return the output in the layout of query, with the size of value; or say which it is: --returns, --layout"
        return f"{implementation.name} {what}\n{_call(shown)}\n  {remedy}"
    shown = next(iter(plain), attempts[0])
    where = _frames(implementation, shown.error)
    remedy = "correct it, or say what it takes: --arrays, --layout, --mask, --requires, ... (qkverify verify --help)"
    if _waits_for_a_gpu(implementation):
        remedy = "it is a Triton kernel, and this machine has no GPU: TRITON_INTERPRET=1 runs it on the CPU"
    said = f"{implementation.name} raises an error on the plainest call: {first_line(shown.error)}"
    return f"{said}\n{where}{_call(shown)}\n  {remedy}"


def raised(implementation: Implementation, attempt: Attempt) -> str:
    """Of a declared implementation, in one line."""
    where = _frames(implementation, attempt.error).strip()
    return f"it raises an error on the plainest call: {first_line(attempt.error)}" + (
        f" ({where})" if where else ""
    )


def inferred(implementations: Iterable[Implementation]) -> str:
    """ "inferred limits: G == H, K >= 1 (mine:attention)", for the last line; nothing where there are none."""
    said = []
    for implementation in implementations:
        rules = [*implementation.inferred]
        rules += [
            f"{rule} with {name}"
            for name, of_option in implementation.requires_with.items()
            for rule in of_option
        ]
        rules += dict.fromkeys(f"not {own[0]} with {own[1]}" for own in implementation.named_pairs)
        said += [f"{', '.join(rules)} ({implementation.name})"] if rules else []
    return f"inferred limits: {'; '.join(said)}" if said else ""


def _waits_for_a_gpu(implementation: Implementation) -> bool:
    module = sys.modules.get(str(getattr(implementation.function, "__module__", "")))
    no_gpu = frameworks.missing("torch") or frameworks.get("torch").unavailable("cuda")
    return hasattr(module, "triton") and bool(no_gpu) and os.environ.get("TRITON_INTERPRET") != "1"


def _frames(implementation: Implementation, error: BaseException | None) -> str:
    frames = traceback.extract_tb(error.__traceback__) if error is not None else []
    mine = [frame for frame in frames if frame.filename == implementation.file]
    return "".join(f"  {Path(frame.filename).name}:{frame.lineno}  {frame.line}\n" for frame in mine[-1:])


def _call(attempt: Attempt) -> str:
    """The call as one can paste it."""
    implementation, problem = attempt.implementation, attempt.problem
    module, _, attribute = implementation.name.rpartition(":")
    name = attribute.rpartition(".")[2] or implementation.name
    keywords = implementation.keywords(dict.fromkeys(implementation.always, True), size=problem.sizes["D"])
    given = ", ".join(["query", "key", "value", *(f"{key}={value!r}" for key, value in keywords.items())])
    shapes = [
        tuple(axes.to_function(array, implementation.layout).shape)
        for array in (problem.query, problem.key, problem.value)
    ]
    arrays = {
        "torch": "torch.randn({}, dtype=torch." + attempt.dtype + ")",
        "numpy": 'np.random.standard_normal({}).astype("' + attempt.dtype + '")',
        "jax": 'jax.random.normal(jax.random.key(0), {}, "' + attempt.dtype + '")',
    }[implementation.arrays]
    lines = [f"from {module} import {name}" if module else "",
             f"query, key, value = ({arrays.format('shape')} for shape in {shapes})", f"{name}({given})"]  # fmt: skip
    imports = {"torch": "import torch", "numpy": "import numpy as np", "jax": "import jax"}[
        implementation.arrays
    ]
    return "\n".join(f"    {line}" for line in (imports, *lines) if line)


def _kind(returned: Any) -> str:
    """What a function returned, in a few words."""
    if hasattr(returned, "shape"):
        return f"{type(returned).__module__.partition('.')[0]} array of shape {tuple(returned.shape)}"
    if isinstance(returned, tuple | list):
        shapes = ", ".join(str(tuple(x.shape)) if hasattr(x, "shape") else type(x).__name__ for x in returned)
        return f"a {type(returned).__name__} of {len(returned)}: {shapes}"
    return f"a {type(returned).__name__}"


def _part(which: int | str) -> str:
    return f"number {which}" if isinstance(which, int) else repr(which)
