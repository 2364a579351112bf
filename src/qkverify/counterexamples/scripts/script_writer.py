"""One script: its text, and the trial that it fails as was found."""

from __future__ import annotations

import platform
import re
import sys
import textwrap
import warnings
from collections.abc import Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from qkverify import foreign_text
from qkverify.contract import OPERATIONS, messages, process_settings
from qkverify.counterexamples.scripts import dropout
from qkverify.counterexamples.scripts.arguments import Arguments
from qkverify.counterexamples.scripts.calls import Calls, writing_lines
from qkverify.counterexamples.scripts.decoding import left_steps, left_verdict
from qkverify.counterexamples.scripts.function_source import FunctionSource
from qkverify.counterexamples.scripts.gradients import gradient_lines, upstream_names
from qkverify.counterexamples.scripts.numbers import WIDTH, spelled
from qkverify.counterexamples.scripts.operations import OPERATION_STEPS
from qkverify.counterexamples.scripts.recorder import Recorder, arrays_of, same
from qkverify.counterexamples.scripts.showing import ScriptCase, equal
from qkverify.counterexamples.scripts.textbook import attention_steps
from qkverify.problem.attention_problem import Problem
from qkverify.runs import watch
from qkverify.runs.assertions import number
from qkverify.runs.run import Run

if TYPE_CHECKING:
    from qkverify.verification.laws import Law


class Sheet:
    """One script: `text()` is all of it, `fails_as_found()` tries what follows the lines that get the function."""

    def __init__(self, law: Law, run: Recorder, place: FunctionSource, case: ScriptCase) -> None:
        self.law, self.run, self.place, self.case = law, run, place, case
        self.framework = run.implementation.arrays
        self.arguments = Arguments(run, upstream=case.call.kind in ("gradients", "dropout gradients"))
        self.calls = Calls(run.implementation, place.alias)
        self.problem = _one_mask(case.call.problem, run) if case.call.problem is not None else None
        self.body = [*writing_lines(run.implementation, place.alias), *getattr(self, f"_{case.kind}")()]

    def text(self) -> str:
        """The whole script."""
        code = "\n".join(self.body)
        used = [alias for alias in self.place.functions if re.search(rf"\b{alias}\(", code)]
        imports, head = self.place.lines(used)
        needed = {*imports, *self.arguments.imports}
        plain = sorted(i for i in needed if i.split()[1] in sys.stdlib_module_names)
        others = sorted(needed - set(plain), key=lambda i: (i.startswith("from"), i))
        parts = ["\n".join(plain), "\n".join(others), "\n".join(head), "\n".join(self._settings())]
        return "\n\n".join(filter(None, (self._docstring(), *parts, code))) + "\n"

    def fails_as_found(self) -> bool:
        """Whether the script fails with the numbers that were found: on the function as it is here, then as a file gives it."""
        return self._fails(self.place.functions) and self._fails(self._afresh())

    def _afresh(self) -> Mapping[str, Any]:
        with messages.calling(self.run.implementation.name):
            return self.place.afresh()

    def _fails(self, functions: Mapping[str, Any]) -> bool:
        names: dict[str, Any] = {**functions, "print": lambda *_: None}
        code = "\n".join([*sorted(self.arguments.imports), *self._settings(), *self.body])
        restored = (
            self.run.framework.restored()
        )  # a script may switch gradients off, which is not the function's doing
        called = messages.calling(self.run.implementation.name)
        with (
            process_settings.not_noted(),
            restored,
            watch.call(),
            called,
            warnings.catch_warnings(),
            np.errstate(all="ignore"),
        ):
            warnings.simplefilter("ignore")
            try:
                exec(compile(code, "<script>", "exec"), names)
            except AssertionError:
                return self._as_found(names)
            except (
                BaseException
            ) as error:  # of the function, `SystemExit` too: not what this script is to show
                if watch.is_users_interrupt(error):
                    raise
                return False
        return False

    def _as_found(self, names: Mapping[str, Any]) -> bool:
        case = self.case
        if case.got is None or case.exact is None:
            return True
        got, exact = (float(names[name][case.location]) for name in ("got", "exact"))
        close = abs(exact - case.exact) <= max(case.bound / 8, 1e-12 * abs(case.exact))
        return bool(equal(got, case.got) and (close or equal(exact, case.exact)))

    def _docstring(self) -> str:
        case, run = self.case, self.run
        versions = " and ".join(
            f"{n} {metadata.version(n)}" for n in dict.fromkeys(("numpy", self.framework))
        )
        where = f"Seen in {run.dtype} on {run.device} with {versions}, Python {platform.python_version()}."
        lines = [self.law.sentence, "", f"Source: {self.law.source}", "", where]
        if case.got is not None and case.exact is not None:
            lines.append(f"{case.what}{list(case.location)}: got {number(case.got)}, exact {number(case.exact)}, "
                         f"bound {case.bound:.2g}. The bound is what rounding may do at most.")  # fmt: skip
        lines.append("Ends with an AssertionError as long as this is so.")
        safe = [foreign_text.escaped(line).replace("\\", "\\\\").replace('"""', "'''") for line in lines]
        safe[0] = f'"""{safe[0]}'
        wrapped = [textwrap.fill(line, WIDTH, break_on_hyphens=False) for line in safe]
        return "\n".join(wrapped) + '\n"""'

    def _settings(self) -> list[str]:
        if self.framework == "torch" and self.run.device != "cpu":
            return [f'DEVICE = "{self.run.device}"']
        if self.framework != "jax":
            return []
        wide = (
            ['jax.config.update("jax_enable_x64", True)'] if sys.modules["jax"].config.jax_enable_x64 else []
        )
        kind = "gpu" if self.run.device == "cuda" else "cpu"
        return [*wide, f'DEVICE = jax.devices("{kind}")[0]']

    def _value(self) -> list[str]:
        """One call beside the same in float64."""
        case, call = self.case, self.case.call
        if self.problem is None:
            call.judged = case.what
            steps = OPERATION_STEPS[call.kind](call, self.run)
            if call.upstream:
                self.arguments.moved = True
                lines = [*self._given(), "", *gradient_lines(call, self.calls, steps)]
            else:
                lines = [*self._given(), "", *steps, "", *self.calls.result_of_operation(call)]
        else:
            lines = [*self.arguments.of(self.problem), "", *attention_steps(self.problem, case.what), ""]
            lines += [*self.arguments.laid_out(self.problem), *self._found(self.problem)]
        return [*self._constants(), *self.arguments.helpers(), *lines, "", *self._verdict()]

    def _found(self, problem: Problem) -> list[str]:
        """What the function gives: output, log-sum-exp or a gradient."""
        call, what = self.case.call, self.case.what
        if call.kind != "gradients":
            return self.calls.output("got", what, problem)
        own_bias = call.problem is not None and call.problem.bias is problem.bias
        return self.calls.gradients(what, problem, own_bias=own_bias, views="views" in call.options)

    def _agree(self) -> list[str]:
        """Two calls that must give the same."""
        other = self.case.other
        assert other is not None
        assert other.problem is not None
        assert self.problem is not None
        second = _one_mask(other.problem, self.run)
        log = self.run.log
        names = {
            n: f"other_{n}" for n, x in arrays_of(second).items() if not _same_as(self.problem, n, second)
        }
        calls = [("got", self.problem, {}), ("exact", second, names)]
        if log.index(other) < log.index(self.case.call):
            calls.reverse()
        lines = [*self.arguments.of(self.problem), *self.arguments.of(second, names)]
        lines += [*self.arguments.laid_out(self.problem), *self.arguments.laid_out(second, names), ""]
        for name, problem, renamed in calls:
            lines += self.calls.output(name, self.case.what, problem, renamed)
        said = "# exact: what the same function gives on the other arguments; the two must be the same, bit for bit."
        return [*self._constants(), *self.arguments.helpers(), *lines, "", said, *self._verdict()]

    def _left(self) -> list[str]:
        """What a call leaves in a cache."""
        ready, case = self._ready(), self.case
        return [*ready, *left_steps(case.what), f"found = {self._call()}", *left_verdict(case.what)]

    def _dropped(self) -> list[str]:
        """One call with dropout beside the same in float64."""
        assert self.problem is not None
        laid_out = self.arguments.laid_out(self.problem)
        lines = dropout.value_lines(self.case, self.run, self.calls, laid_out)
        made = self.arguments.of(self.problem)
        return [*self._constants(), *self.arguments.helpers(), *made, "", *lines, "", *self._verdict()]

    def _masks(self) -> list[str]:
        """Two calls with dropout."""
        return [*self._ready(), *dropout.masks_lines(self.case, self.run, self.calls)]

    def _share(self) -> list[str]:
        """How much a call drops."""
        return [*self._ready(), *dropout.share_lines(self.case, self.run, self.calls)]

    def _repeats(self) -> list[str]:
        """A call that must give the same twice."""
        return [*self._ready(), *dropout.repeats_lines(self.case, self.run, self.calls)]

    def _written(self) -> list[str]:
        """An argument before and after the call."""
        name, ready = self.case.what, self._ready()
        return [*ready, f"before = numbers({name}).copy()", self._call(),
                f'print("before", before.ravel(), "  after", numbers({name}).ravel())',
                f"assert np.array_equal(numbers({name}), before, equal_nan=True), "
                f'"the call wrote to {name}"']  # fmt: skip

    def _raises(self) -> list[str]:
        """A call that must not raise."""
        return [*self._ready(), "try:", f"    {self._call()}", "except Exception as error:",
                '    raise AssertionError(f"the call raises {type(error).__name__}: {error}") from error']  # fmt: skip

    def _refuses(self) -> list[str]:
        """A call that must raise."""
        return [*self._ready(), "try:", f"    {self._call()}", "except Exception as error:",
                '    print(f"it raises, as it should: {error}")', "else:",
                '    raise AssertionError("sizes that do not fit, and no error")']  # fmt: skip

    def _contract(self) -> list[str]:
        """A call that must give certain shapes and dtypes."""
        call = self.case.call
        if call.upstream:
            raise NotImplementedError("of a gradient it may be what was written, which no script shows yet")
        if self.problem is None:
            shapes, dtype = [call.shape], ""
        else:
            s, heads_last = self.problem.sizes, self.run.implementation.layout == "BLHD"
            rows = (s["B"], s["Q"], s["H"]) if heads_last else (s["B"], s["H"], s["Q"])
            shapes, dtype = [(*rows, s["E"]), rows][: 1 + self.problem.return_lse], self.run.dtype
        lines = [f"found = {self._call()}", "found = found if isinstance(found, tuple) else (found,)",
                 "print([(tuple(x.shape), x.dtype) for x in found])", f"assert len(found) == {len(shapes)}"]  # fmt: skip
        lines += [f"assert tuple(found[{i}].shape) == {tuple(x)}" for i, x in enumerate(shapes)]
        lines += [f'assert str(found[0].dtype).removeprefix("torch.") == "{dtype}"'] if dtype else []
        return [*self._ready(), *lines]

    def _ready(self) -> list[str]:
        """All that comes before a call."""
        made, p = self.arguments, self.problem
        lines = self._given() if p is None else [*made.of(p), *made.laid_out(p)]
        return [*made.helpers(), *lines, ""]

    def _given(self) -> list[str]:
        """The arguments of another operation."""
        call = self.case.call
        named = [*zip(OPERATIONS[call.kind], call.arguments, strict=False),
                 *((name, x) for name, x in call.options.items() if isinstance(x, np.ndarray))]  # fmt: skip
        lines = self.arguments.values([*named, *zip(upstream_names(call), call.upstream, strict=False)])
        names = {OPERATIONS[call.kind][i]: layout for i, layout in call.layouts.items()}
        return [*lines, *self.arguments.seen_as(names)]

    def _call(self) -> str:
        """The call under test."""
        if self.problem is None:
            return self.calls.of_operation(self.case.call)
        return self.calls.of(self.problem)

    def _constants(self) -> list[str]:
        what = self.case.what.replace("result", self.run.implementation.operation)
        return [
            f"WORST = {self.case.location}  # the worst element of the {what}",
            f"BOUND = {spelled(np.float64(self.case.bound), np.dtype(float))}",
            "",
        ]

    def _verdict(self) -> list[str]:
        exact = self.case.exact
        assert exact is not None
        holds = (
            "abs(got[WORST] - exact[WORST]) <= BOUND" if np.isfinite(exact) else "got[WORST] == exact[WORST]"
        )
        holds = "np.isnan(got[WORST])" if np.isnan(exact) else holds
        return [
            'print(f"got {got[WORST]:.9g}   exact {exact[WORST]:.9g}   bound {BOUND:.2g}")',
            f"assert {holds}",
        ]


def _one_mask(problem: Problem, run: Run) -> Problem:
    """A mask joins the bias where one parameter takes both, as the run does it."""
    problem = run.with_required_mask(problem)
    parameters = run.implementation.parameters
    if problem.mask is None or problem.bias is None or parameters.get("mask") != parameters.get("bias"):
        return problem
    return problem.replace(
        mask=None, bias=np.where(problem.mask, problem.bias, -np.inf).astype(run.numpy_dtype)
    )


def _same_as(a: Problem, name: str, b: Problem) -> bool:
    """Whether an array of two problems is the same, in the same place."""
    x, y = getattr(a, name), getattr(b, name)
    return (
        x is not None and same(x, y) and a.layouts.get(name) == b.layouts.get(name) and x.strides == y.strides
    )
