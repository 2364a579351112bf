"""Calls of the function under test, as expressions and lines of a script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qkverify.contract import OPERATIONS, Implementation, parameter_names
from qkverify.contract.axes import LAYOUTS
from qkverify.counterexamples.scripts.recorder import Recorded
from qkverify.problem.attention_problem import Problem

WRITTEN = "output_of"  # what a script calls a function that returns what the one under test writes


class Calls:
    """Calls of one implementation, which the script calls `alias`."""

    def __init__(self, implementation: Implementation, alias: str) -> None:
        self.implementation = implementation
        self.alias = WRITTEN if implementation.output_parameter else alias

    def of(
        self,
        problem: Problem,
        names: Mapping[str, str] | None = None,
        further: Mapping[str, Any] | None = None,
    ) -> str:
        """The call on a problem, whose arrays may have other names; `further` are options beyond those of the problem."""
        names = names or {}
        given = [names.get(name, name) for name in ("query", "key", "value")]
        return f"{self.alias}({', '.join([*given, *self._keywords(problem, names, further)])})"

    def of_operation(
        self, call: Recorded, suffix: str = "", further: Sequence[str] = (), copied: Sequence[str] = ()
    ) -> str:
        """The call of another operation, or of its function with a suffix on `further` arguments; some are torch copies."""
        given = [f"{n}.clone()" if n in copied else n for n in OPERATIONS[call.kind][: len(call.arguments)]]
        options = self._options(call, of_vjp=suffix == "_vjp")
        return f"{self.alias}{suffix}({', '.join([*given, *further, *options])})"

    def result_of_operation(self, call: Recorded) -> list[str]:
        """The result of another operation that is judged, under the name `got`."""
        several = len(call.got) > 1
        lines = [f"found = {self.of_operation(call)}"]
        if call.kind == "cached_attention":  # arrays that cannot be written come back beside the output
            lines.append("found = found[0] if isinstance(found, tuple) else found")
        return [
            *lines,
            f"got = numbers(found{f'[{list(call.got).index(call.judged)}]' if several else ''})",
        ]

    def _options(self, call: Recorded, *, of_vjp: bool) -> list[str]:
        named = {
            name: NamedArgument(name) if isinstance(x, np.ndarray) else x for name, x in call.options.items()
        }
        shape = getattr(call.arguments[0], "shape", ())
        keywords = self.implementation.keywords(named, size=int(shape[-1]) if shape else 0)
        keywords = self.implementation.keywords_of_vjp(keywords) if of_vjp else keywords
        return [f"{name}={plain(x)!r}" for name, x in keywords.items()]

    def output(
        self, to: str, what: str, problem: Problem, names: Mapping[str, str] | None = None,
        further: Mapping[str, Any] | None = None,
    ) -> list[str]:  # fmt: skip
        """The output or the log-sum-exp, under the name `to`."""
        call = self.of(problem, names, further)
        if problem.return_lse:
            call += f"[{int(what == 'log-sum-exp')}]"
        else:
            call += self._part
        return [f"{to} = numbers({call}){self._turned}"]

    def gradients(self, what: str, problem: Problem, *, own_bias: bool, views: bool) -> list[str]:
        """The gradient under test: by the function's own vjp, or as the framework differentiates.

        `own_bias` says that the bias is that of the problem and holds no mask; `views`, that the function gets views.
        """
        which = what.removeprefix("gradient of ")
        leaves = ["query", "key", "value"]
        call = self.of(problem)
        first = f"{call}[0]" if problem.return_lse else call + self._part
        if self.implementation.vjp is not None:
            arguments = [*leaves, "upstream", *self._keywords(problem, {}, of_vjp=True)]
            lines = [f"gradients = {self.alias}_vjp({', '.join(arguments)})"]
        else:
            leaves += ["bias"] if problem.bias is not None and own_bias else []
            every = ", ".join(leaves)
            viewed = [f"leaves, ({every}) = ({every}), (x[...] for x in ({every}))"] if views else []
            of = "leaves" if views else f"({every})"
            lines = {
                "torch": [f"{every} = (x.detach().requires_grad_() for x in ({every}))", *viewed, f"output = {first}",
                          f"gradients = torch.autograd.grad(output, {of}, upstream, materialize_grads=True)"],
                "jax": [f"output, pull = jax.vjp(lambda {every}: {first}, {every})", "gradients = pull(upstream)"],
            }[self.implementation.arrays]  # fmt: skip
        turned = "" if which == "bias" else self._turned
        return [*lines, f"got = numbers(gradients[{leaves.index(which)}]){turned}  # {', '.join(leaves)}"]

    @property
    def _turned(self) -> str:
        return LAYOUTS[self.implementation.layout][1]

    @property
    def _part(self) -> str:
        """What takes the output out of a result of several parts."""
        which = self.implementation.returns
        return "" if which is None else f"[{which}]" if isinstance(which, int) else f".{which}"

    def _keywords(
        self, problem: Problem, names: Mapping[str, str], further: Mapping[str, Any] | None = None,
        *, of_vjp: bool = False,
    ) -> list[str]:  # fmt: skip
        options = {name: NamedArgument(names.get(name, name)) if isinstance(value, np.ndarray) else value
                   for name, value in problem.options.items()}  # fmt: skip
        keywords = self.implementation.keywords(
            {**options, **(further or {})}, grouped=problem.group != 1, size=problem.sizes["D"]
        )
        keywords = self.implementation.keywords_of_vjp(keywords) if of_vjp else keywords
        return [f"{name}={plain(value)!r}" for name, value in keywords.items()]


def writing_lines(implementation: Implementation, alias: str) -> list[str]:
    """A function that returns what the function under test writes to its output parameter; no lines if it has none."""
    written = implementation.output_parameter
    if not written:
        return []
    arguments = ["query", "key", "value"]
    at = parameter_names(implementation.function).index(written)
    arguments.insert(at, written if at <= len(arguments) else f"{written}={written}")
    shape = "(*query.shape[:-1], value.shape[-1])"
    filled = {"torch": f"query.new_full({shape}, float('nan'))"}.get(
        implementation.arrays, f"np.full({shape}, np.nan, query.dtype)"
    )
    return [f"def {WRITTEN}(query, key, value, **options):", f"    {written} = {filled}",
            f"    {alias}({', '.join(arguments)}, **options)", f"    return {written}", "", ""]  # fmt: skip


class NamedArgument(str):
    """An argument that stands in a script under a name."""

    __slots__ = ()
    __repr__ = str.__str__


def plain(value: Any) -> Any:
    """A NumPy number as Python's own; all else as it is."""
    return value.item() if isinstance(value, np.generic) else value
