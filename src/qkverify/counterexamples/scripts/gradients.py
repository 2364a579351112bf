"""The gradient of another operation in a script: its textbook form, with one number moved along the imaginary axis.

f(x + i h) = f(x) + i h f'(x) - h^2 f''(x) / 2 ...: the imaginary part over h is the derivative, and for h = 1e-30 to the last
digit, because nothing is subtracted (Squire and Trapp, "Using complex variables to estimate derivatives of real functions", SIAM
Review 40, 1998). So no backward pass has to stand in a script, and a person has only the formula to read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qkverify.contract import OPERATIONS
from qkverify.counterexamples.scripts.calls import Calls
from qkverify.counterexamples.scripts.recorder import Recorded
from qkverify.strategies.operations import OPERATION_SPECS

WRITTEN = ("key_cache", "value_cache")


def upstream_names(call: Recorded) -> list[str]:
    """What a script calls the gradients from above: of several results, each after its part."""
    several = len(call.upstream) > 1
    return [f"{name}_upstream" for name in OPERATION_SPECS[call.kind].parts] if several else ["upstream"]


def gradient_lines(call: Recorded, calls: Calls, steps: Sequence[str]) -> list[str]:
    """The gradient that is judged, as the function gives it (`got`) and as the steps do (`exact`, at the worst place)."""
    name = call.judged.removeprefix("gradient of ")
    leaf = next(written for written, of in _leaves(call).items() if of == name)
    above = upstream_names(call)
    return [
        *_found(call, calls, leaf, above), "",
        "# The exact derivative by that number alone: the formula, with the number moved along the imaginary axis.",
        f"moved = numbers({leaf}).astype(complex)", "moved[WORST] += 1e-30j", f"{leaf} = moved",
        *steps, f"slope = {_slope(name, above, steps)}.imag / 1e-30",
        "exact = np.zeros(moved.shape)", "exact[WORST] = slope",
    ]  # fmt: skip


def _slope(name: str, above: Sequence[str], steps: Sequence[str]) -> str:
    """The sum of what comes from above times the results: of all of them where the steps have them as `parts`, else of one."""
    if any(step.startswith("parts = ") for step in steps):
        return " + ".join(
            f"(numbers({upstream}) * parts[{i}]).sum()" for i, upstream in enumerate(above)
        ).join("()")
    return f"(numbers({f'{name}_upstream' if len(above) > 1 else above[0]}) * exact).sum()"


def _leaves(call: Recorded) -> dict[str, str]:
    """The arrays that have gradients, as a script writes them, and their names."""
    leaves: dict[str, str] = {}
    for argument, x in zip(OPERATIONS[call.kind], call.arguments, strict=False):
        inner = (
            {f'{argument}["{name}"]': name for name in x} if isinstance(x, Mapping) else {argument: argument}
        )
        leaves |= {written: name for written, name in inner.items() if f"gradient of {name}" in call.got}
    return leaves


def _found(call: Recorded, calls: Calls, leaf: str, above: list[str]) -> list[str]:
    """Lines for what the function gives."""
    which = list(call.got).index(call.judged)
    if calls.implementation.vjp is not None:
        return [f"got = numbers({calls.of_operation(call, '_vjp', above)}[{which}])"]
    given = list(dict.fromkeys(written.partition("[")[0] for written in _leaves(call)))
    if calls.implementation.arrays == "jax":
        result = calls.of_operation(call) + ("[0]" if call.kind == "cached_attention" else "")
        every = f"({', '.join(above)})" if len(above) > 1 else above[0]
        argument, bracket, key = leaf.partition("[")
        return [f"_, pull = jax.vjp(lambda {', '.join(given)}: {result}, {', '.join(given)})",
                f"got = numbers(pull({every})[{given.index(argument)}]{bracket}{key})"]  # fmt: skip
    mappings = {written.partition("[")[0] for written in _leaves(call) if "[" in written}
    lines = [f"{argument} = {{name: x.detach().requires_grad_() for name, x in {argument}.items()}}" if argument in mappings
             else f"{argument} = {argument}.detach().requires_grad_()" for argument in given]  # fmt: skip
    result = calls.of_operation(call, copied=[argument for argument in given if argument in WRITTEN])
    if len(above) > 1:
        lines.append(f"total = sum((x * g).sum() for x, g in zip({result}, ({', '.join(above)})))")
    else:
        lines.append(f"total = ({result} * {above[0]}).sum()")
    return [
        *lines,
        f"(gradient,) = torch.autograd.grad(total, {leaf}, materialize_grads=True)",
        "got = numbers(gradient)",
    ]
