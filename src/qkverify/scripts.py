"""A counterexample as a script that a person can paste into a bug report: NumPy, the framework, the function, nothing else.

`script(law, run)` replays the failing example on a `Recorder`, which keeps every call and what came back, and then asks for
each of these in turn whether it shows the failure; the first one whose assertion fails becomes the text:

    an exception, a wrong shape or dtype, an input that was written, sizes that must be refused and are not
    one call against a plain float64 computation that stands in the script   (most laws: output, log-sum-exp, gradients)
    two calls that must agree bit for bit                                    (poison in what nobody may read)

Every text is tried here before it is kept: it must fail, with the numbers that the replay saw. So a law on a derived quantity
whose single calls all hold gets no script, and neither does a function that no module has under a name. What is ugly: the
trial runs in this process. A function may remember earlier calls, so its file is loaded once more for a second trial; where
that is slow or cannot be done, as for what is installed, such a memory goes unseen.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import dataclasses
import itertools
import json
import operator
import platform
import re
import runpy
import sys
import sysconfig
import textwrap
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from qkverify.contract import OPERATIONS, REGISTERED, Implementation
from qkverify.errors import ContractError, LawViolation, UnsupportedCase
from qkverify.problems import PRINTED, TENSORS, Problem
from qkverify.rounding import Bounded
from qkverify.runs import Run
from qkverify.verdict import Evidence, number

if TYPE_CHECKING:
    from qkverify.laws import Law

Array = np.ndarray
WIDTH = 110
SLOW = 0.05  # seconds: a file that took longer to load is not loaded again
_seconds: dict[str, float] = {}  # what it took, by file
ARRAYS = (*TENSORS, "alibi_slopes", "key_lengths", "sinks")  # the fields of a problem that may hold an array
TAKEN = {*ARRAYS, "x", "q", "k", "v", "g", "got", "exact", "top", "total", "weights", "scores", "products", "numbers",
         "ahead", "np", "torch", "jax", "positions", "other", "softmax_of"}  # fmt: skip


def script(law: Law, run: Run) -> str:
    """The script for the failing example of a run, or nothing where none would fail faithfully. Raises nothing."""
    try:
        place = Place.of(run.implementation)
        recorder = Recorder(run)
        broken = recorder.replayed(law, run.failing)
        if place is None or broken is None:
            return ""
        for found in cases(law, recorder, broken):
            with contextlib.suppress(Exception):  # of one form; another may do
                sheet = Sheet(law, recorder, place, found)
                if sheet.fails_as_found():
                    return sheet.text()
    except Exception:  # a failure's message comes first, whatever becomes of its script
        return ""
    return ""


# -- what was called -----------------------------------------------------------------------------------------------------


@dataclass
class Recorded:
    """One call: its arguments as they were before it, what came back, and what it did to them."""

    kind: str  # "attention", "gradients", "unchecked", or the operation
    problem: Problem | None = None
    arguments: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    got: dict[str, Array] = field(default_factory=dict)
    exact: dict[str, Bounded] = field(default_factory=dict)
    written: list[str] = field(default_factory=list)
    error: Exception | None = None


class Recorder(Run):
    """A run like another one that writes down its calls."""

    def __init__(self, run: Run) -> None:
        vars(self).update(vars(run))
        self.largest_margin, self.problems, self._cache = 0.0, [], {}
        self.log: list[Recorded] = []

    def replayed(self, law: Law, drawn: Mapping[str, Any]) -> Exception | None:
        """What the law raises on these arguments. They are copied: the first run of them stays as it was."""
        self.failing = {name: _copied(value) for name, value in drawn.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Hypothesis asks why `assume` is called outside of a test
            try:
                law.replay(self, self.failing)
            except UnsupportedCase:
                return None
            except Exception as broken:
                return broken
        return None

    def outputs(self, problem: Problem, **further: Any) -> tuple[Array, ...]:
        if further:  # dropout and the like: no plain attention to hold it against
            return super().outputs(problem, **further)
        with self._noted(Recorded("attention", problem=problem)) as call:
            parts = super().outputs(problem)
            call.got = dict(zip(("output", "log-sum-exp"), map(np.array, parts), strict=False))
            return parts

    def lse(self, problem: Problem) -> Bounded:
        found = super().lse(problem)
        exact = self.bound(problem.replace(return_lse=True))[1]
        self.log[-1].exact["log-sum-exp"] = Bounded(exact.value, found.errors)
        return found

    def native_call(self, problem: Problem) -> Any:
        with self._noted(Recorded("unchecked", problem=problem)):
            return super().native_call(problem)

    def gradient_values(self, problem: Problem) -> dict[str, Array]:
        with self._noted(Recorded("gradients", problem=problem)) as call:
            found = super().gradient_values(problem)
            call.got = {f"gradient of {name}": np.array(x) for name, x in found.items()}
            return found

    def call(self, *arguments: Any, shape: tuple[int, ...], **options: Any) -> Array:
        kind = self.implementation.operation
        with self._noted(Recorded(kind, arguments=arguments, options=options, shape=shape)) as call:
            returned = super().call(*arguments, shape=shape, **options)
            call.got = {"result": np.array(returned)}
            return returned

    def within(self, got: Array, exact: Bounded) -> Bounded:
        self.log[-1].exact = {"result": self._oracle_included(exact)}
        return super().within(got, exact)

    def judged(self, call: Recorded) -> dict[str, Bounded]:
        """The exact values of what a call gave, with their bounds."""
        if call.problem is None or not call.got:
            return call.exact
        if call.kind == "gradients":
            return {f"gradient of {name}": x for name, x in self.gradient_bounds(call.problem).items()}
        return {"output": self.bound(call.problem)[0], **call.exact}

    @contextlib.contextmanager
    def _noted(self, call: Recorded) -> Iterator[Recorded]:
        given, arguments = call.problem, call.arguments
        call.problem, call.arguments = _copied(given), _copied(arguments)
        self.log.append(call)
        try:
            yield call
        except Exception as error:
            call.error = error
            raise
        finally:
            if given is not None and call.problem is not None:
                call.written = [
                    n for n, x in _arrays(call.problem).items() if not _same(x, getattr(given, n))
                ]


def _copied(value: Any) -> Any:
    """Arrays anew, each in the order of its axes in memory."""
    if isinstance(value, np.ndarray):
        return np.array(value, order="K")
    if isinstance(value, Problem):
        return value.replace(**{name: np.array(x, order="K") for name, x in _arrays(value).items()})
    if isinstance(value, tuple | list):
        return type(value)(_copied(x) for x in value)
    return copy.copy(value)


def _arrays(problem: Problem) -> dict[str, Array]:
    given = {name: getattr(problem, name) for name in ARRAYS}
    return {name: x for name, x in given.items() if x is not None}


def _same(a: Array, b: Array) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


# -- what of it shows the failure ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a script is to show. `got` and `exact` are None where the failure is none of numbers."""

    kind: str  # "value", "agree", "written", "raises", "refuses", "contract"
    call: Recorded
    what: str = ""
    location: tuple[int, ...] = ()
    got: float | None = None
    exact: float | None = None
    bound: float = 0.0
    other: Recorded | None = None  # the call that must agree with `call`


def cases(law: Law, run: Recorder, broken: Exception) -> Iterator[Case]:
    """What could show the failure, the most telling first."""
    evidence = broken.evidence if isinstance(broken, LawViolation) else None
    seen = evidence if isinstance(evidence, Evidence) else None
    if not run.log:
        return
    last = run.log[-1]
    if last.error is broken:
        yield Case(kind="contract" if isinstance(broken, ContractError) else "raises", call=last)
        return
    if last.kind == "unchecked" and last.error is None:
        yield Case(kind="refuses", call=last)
        return
    written = [Case(kind="written", call=c, what=c.written[0]) for c in run.log if c.written]
    if seen is None:
        yield from written
    if not _repeats_differ(run.log):
        yield from _against_exact(law, run, seen)
        if seen is not None and law.exact:
            yield from _against_each_other(run.log, seen)
    yield from written  # what is exact for the arguments that a call has left behind may not be for those it was given


def _repeats_differ(log: list[Recorded]) -> bool:
    """Whether two calls with the same arguments gave different numbers: then no single call shows anything for sure."""
    calls = [c for c in log if c.problem is not None and c.got]
    return any(
        a.kind == b.kind and _equal_problems(a.problem, b.problem) and not all(map(_same, a.got.values(), b.got.values()))
        for a, b in itertools.combinations(calls, 2)
    )  # fmt: skip


def _equal_problems(a: Problem | None, b: Problem | None) -> bool:
    if a is None or b is None:
        return False
    return all(
        (x is None) == (y is None) and (_same(x, y) if isinstance(x, np.ndarray) else x == y)
        for x, y in ((getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(Problem))
    )


def _against_exact(law: Law, run: Recorder, seen: Evidence | None) -> Iterator[Case]:
    """Single calls outside of their bound: first that whose numbers the failure names, then the rest as they came."""
    found: list[tuple[bool, Case]] = []
    for call in run.log:
        for what, exact in run.judged(call).items():
            worst = _worst(call.got[what], exact, seen, law.exact) if what in call.got else None
            if worst is not None:
                location, bound, named = worst
                got, value = float(call.got[what][location]), float(exact.value[location])
                found.append((named, Case(kind="value", call=call, what=what, location=location, got=got,
                                          exact=value, bound=bound)))  # fmt: skip
    yield from (case for _, case in sorted(found, key=lambda pair: not pair[0]))


def _worst(
    got: Array, exact: Bounded, seen: Evidence | None, to_the_bit: bool
) -> tuple[tuple[int, ...], float, bool] | None:
    """(location, bound, whether the failure names this element) of the element that is off, or None."""
    a, b = got.astype(np.float64), np.broadcast_to(exact.value, got.shape)
    bound = np.nan_to_num(np.broadcast_to(exact.errors, got.shape), nan=np.inf, posinf=np.inf)
    # NaN is exact where a row sees nothing and that is declared, or where poison lies: only the failure can say which.
    unknown = np.isnan(b) & (seen is None or not np.isnan(seen.exact))
    with np.errstate(all="ignore"):
        distance = np.abs(a - b)
        holds = (distance <= bound) | _equal(a, b) | np.isposinf(bound) | unknown
        margin = np.where(holds, -1.0, np.nan_to_num(distance / bound, nan=np.inf))
    if seen is not None:
        named = _equal(a, seen.got) & _equal(b, seen.exact) & ~_equal(a, b)
        here = _inside(seen.location, named) and bool(named[seen.location])
        if (named & ~holds).any():
            at = seen.location if here and not holds[seen.location] else _first(named & ~holds)
            return at, float(bound[at]), True
        if here or (to_the_bit and named.any()):  # the law knows better than the bound
            return seen.location if here else _first(named), seen.bound, True
    if holds.all():
        odd = ~np.isfinite(a) & np.isfinite(
            b
        )  # outside of the range that the bound covers, but no number at all
        return (_first(odd), np.inf, False) if seen is None and odd.any() else None
    at = tuple(int(i) for i in np.unravel_index(int(np.argmax(margin)), a.shape))
    return at, float(bound[at]), False


def _against_each_other(log: list[Recorded], seen: Evidence) -> Iterator[Case]:
    """Two calls that differ where the failure says so: both of its numbers at one place."""
    for a, b in itertools.permutations([c for c in log if c.problem is not None], 2):
        for what in a.got.keys() & b.got.keys():
            x, y = a.got[what].astype(np.float64), b.got[what].astype(np.float64)
            if x.shape != y.shape:
                continue
            named = _equal(x, seen.got) & _equal(y, seen.exact) & ~_equal(x, y)
            if named.any():
                yield Case(kind="agree", call=a, other=b, what=what, location=_first(named), got=seen.got,
                           exact=seen.exact)  # fmt: skip


def _equal(a: Any, b: Any) -> Any:
    return (a == b) | (np.isnan(a) & np.isnan(b))


def _first(mask: Array) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(mask)[0])


def _inside(location: tuple[int, ...], array: Array) -> bool:
    return len(location) == array.ndim and all(i < n for i, n in zip(location, array.shape, strict=True))


# -- where the function is -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """How a script gets at the function (and its vjp): by import where that can be, else out of its file."""

    functions: Mapping[str, Any]  # by what the script calls them
    attributes: Mapping[str, str]  # what the module calls them
    module: str
    file: str
    folder: str | None  # what an import needs on the path; "": nothing, it is installed; None: not importable

    @classmethod
    def of(cls, one: Implementation) -> Place | None:
        """None where no module has the function under a name."""
        found = _attribute(one.function, one.name)
        if found is None:
            return None
        module, attribute = found
        alias = attribute.rpartition(".")[2]
        alias = "function" if alias in TAKEN else alias
        functions: dict[str, Any] = {alias: one.function}
        attributes = {alias: attribute}
        vjp = _attribute(one.vjp, "") if one.vjp is not None else None
        if vjp is not None and vjp[0] == module:
            functions[f"{alias}_vjp"], attributes[f"{alias}_vjp"] = one.vjp, vjp[1]
        file = getattr(sys.modules[module], "__file__", None) or ""
        folder = _importable_from(module, file)
        return (
            None
            if folder is None and not file.endswith(".py")
            else cls(functions, attributes, module, file, folder)
        )

    @property
    def alias(self) -> str:
        return next(iter(self.functions))

    def afresh(self) -> Mapping[str, Any]:
        """The functions out of their file once more, without what earlier calls left in its caches; else as they are."""
        if self.folder == "" or _seconds.get(self.file, 0.0) > SLOW:
            return self.functions
        registered, start = len(REGISTERED), time.perf_counter()
        try:
            module = SimpleNamespace(**runpy.run_path(self.file))
            return {alias: operator.attrgetter(own)(module) for alias, own in self.attributes.items()}
        except Exception:  # a file that cannot be loaded twice, or not on its own
            return self.functions
        finally:
            del REGISTERED[registered:]
            _seconds[self.file] = time.perf_counter() - start

    def lines(self, used: list[str]) -> tuple[list[str], list[str]]:
        """(imports, what comes after them) for these functions."""
        if self.folder is None:
            got = [f'{a} = loaded["{self.attributes[a]}"]' for a in used]
            return ["import os", "import runpy", "import sys"], [
                f"FILE = {json.dumps(self.file)}  # what is under test", "", "sys.path.append(os.path.dirname(FILE))",
                "loaded = runpy.run_path(FILE)", *got,
            ]  # fmt: skip
        roots = sorted({self.attributes[a].partition(".")[0] for a in used})
        lines = [f"from {self.module} import {', '.join(roots)}"]
        lines += [f"{a} = {self.attributes[a]}" for a in used if self.attributes[a] != a]
        if not self.folder:
            return lines[:1], lines[1:]
        return ["import sys"], [f"sys.path.insert(0, {json.dumps(self.folder)})  # where it is", *lines]


def _attribute(function: Any, name: str) -> tuple[str, str] | None:
    """(module, attribute) under which the function is found again: as it was asked for, else as it calls itself."""
    asked, _, path = name.rpartition(":")
    own = str(getattr(function, "__module__", "") or "")
    for module, attribute in ((asked, path), (own, str(getattr(function, "__qualname__", "")))):
        value: Any = sys.modules.get(module)
        for part in attribute.split(".") if value is not None else ():
            value = getattr(value, part, None)
        if value is function and attribute:
            return module, attribute
    everything = vars(sys.modules[own]) if own in sys.modules else {}
    return next(((own, key) for key, value in everything.items() if value is function), None)


def _importable_from(module: str, file: str) -> str | None:
    """The folder that an import of the module needs on the path: "" if it is installed, None if it cannot be imported."""
    if module == "__main__" or module.partition(".")[0] == "qkverify":
        return None
    if not file:
        return ""  # built in
    parts, path = module.split("."), Path(file).resolve()
    path = path.parent if path.stem == "__init__" else path
    if [*path.parts[-len(parts) : -1], path.name.partition(".")[0]] != parts:
        return None
    folder = path.parents[len(parts) - 1]
    return "" if folder in {Path(p).resolve() for p in sysconfig.get_paths().values()} else str(folder)


# -- the text ------------------------------------------------------------------------------------------------------------

# The memory layouts of `problems.LAYOUTS` in each framework's own words; what lies around a view is NaN (or True).
AROUND = {
    "numpy": "np.full({shape}, True if x.dtype == bool else np.nan, x.dtype)",
    "torch": "torch.full({shape}, True if x.dtype == torch.bool else torch.nan, dtype=x.dtype, device=x.device)",
}
VIEWS = {
    "every second": ("(*x.shape[:-1], 2 * x.shape[-1])", "buffer[..., ::2]"),
    "slice of longer": ("(*x.shape[:-2], x.shape[-2] + 3, x.shape[-1] + 1)", "buffer[..., 1:-2, :-1]"),
    "rows far apart": ("(*x.shape[:-1], max(x.shape[-1], 2**17 // int(np.prod(x.shape[:-1]))))",
                       "buffer[..., : x.shape[-1]]"),
}  # fmt: skip
DIRECT = {
    ("heads after length", "numpy"): "np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2)",
    ("heads after length", "torch"): "x.transpose(1, 2).contiguous().transpose(1, 2)",
    ("last axes swapped", "numpy"): "np.ascontiguousarray(x.swapaxes(-1, -2)).swapaxes(-1, -2)",
    ("last axes swapped", "torch"): "x.transpose(-1, -2).contiguous().transpose(-1, -2)",
    ("batch of stride zero", "numpy"): "np.broadcast_to(x[:1], x.shape)",
    ("batch of stride zero", "torch"): "x[:1].expand(x.shape)",
}
REORDERED = {"numpy": "np.ascontiguousarray(x.transpose(axes)).transpose(np.argsort(axes))",
             "torch": "x.permute(axes).contiguous().permute(tuple(np.argsort(axes)))"}  # fmt: skip
NUMBERS = {"numpy": "np.asarray(x, np.float64)", "torch": "x.detach().cpu().double().numpy()",
           "jax": "np.asarray(x, np.float64)"}  # fmt: skip


class Sheet:
    """One script: `text()` is all of it, `fails_as_found()` tries what follows the lines that get the function."""

    def __init__(self, law: Law, run: Recorder, place: Place, case: Case) -> None:
        self.law, self.run, self.place, self.case = law, run, place, case
        self.framework = run.implementation.arrays
        self.imports = {"import numpy as np"} | {f"import {n}" for n in (self.framework,) if n != "numpy"}
        self.reordered = False
        self.problem = _one_mask(case.call.problem, run) if case.call.problem is not None else None
        self.body = getattr(self, f"_{case.kind}")()

    def text(self) -> str:
        """The whole script."""
        code = "\n".join(self.body)
        used = [alias for alias in self.place.functions if re.search(rf"\b{alias}\(", code)]
        imports, head = self.place.lines(used)
        plain = sorted(i for i in {*imports, *self.imports} if i.split()[1] in sys.stdlib_module_names)
        others = sorted({*imports, *self.imports} - set(plain), key=lambda i: (i.startswith("from"), i))
        parts = ["\n".join(plain), "\n".join(others), "\n".join(head), "\n".join(self._settings())]
        return "\n\n".join(filter(None, (self._docstring(), *parts, code))) + "\n"

    def fails_as_found(self) -> bool:
        """Whether the script fails with the numbers that were found: on the function as it is here, then as a file gives it."""
        return self._fails(self.place.functions) and self._fails(self.place.afresh())

    def _fails(self, functions: Mapping[str, Any]) -> bool:
        names: dict[str, Any] = {**functions, "print": lambda *_: None}
        code = "\n".join([*sorted(self.imports), *self._settings(), *self.body])
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            try:
                exec(compile(code, "<script>", "exec"), names)
            except AssertionError:
                return self._as_found(names)
        return False

    def _as_found(self, names: Mapping[str, Any]) -> bool:
        case = self.case
        if case.got is None or case.exact is None:
            return True
        got, exact = (float(names[name][case.location]) for name in ("got", "exact"))
        close = abs(exact - case.exact) <= max(case.bound / 8, 1e-12 * abs(case.exact))
        return bool(_equal(got, case.got) and (close or _equal(exact, case.exact)))

    # -- its parts --

    def _docstring(self) -> str:
        case, run = self.case, self.run
        versions = " and ".join(
            f"{n} {metadata.version(n)}" for n in dict.fromkeys(("numpy", self.framework))
        )
        where = f"Seen in {run.dtype} on {run.device} with {versions}, Python {platform.python_version()}."
        lines = [f'"""{self.law.sentence}', "", f"Source: {self.law.source}", "", where]
        if case.got is not None and case.exact is not None:
            lines.append(f"{case.what}{list(case.location)}: got {number(case.got)}, exact {number(case.exact)}, "
                         f"bound {case.bound:.2g}. The bound is what rounding may do at most.")  # fmt: skip
        lines.append("Ends with an AssertionError as long as this is so.")
        safe = [line.replace("\\", "\\\\") for line in lines]
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
            lines = [
                *self._given(call.arguments),
                "",
                *OPERATION_STEPS[call.kind](call, self.run),
                "",
                f"got = numbers({self._operation_call()})",
            ]
        else:
            lines = [
                *self._arrays(self.problem),
                "",
                *_steps(self.problem, case.what),
                "",
                *self._laid_out(self.problem),
            ]
            lines += self._gradients() if call.kind == "gradients" else self._output("got", self.problem)
        return [*self._constants(), *self._helpers(), *lines, "", *self._verdict()]

    def _agree(self) -> list[str]:
        """Two calls that must give the same."""
        other = self.case.other
        assert other is not None
        assert other.problem is not None
        assert self.problem is not None
        second = _one_mask(other.problem, self.run)
        log = self.run.log
        names = {n: f"other_{n}" for n, x in _arrays(second).items() if not _same_as(self.problem, n, second)}
        calls = [("got", self.problem, {}), ("exact", second, names)]
        if log.index(other) < log.index(self.case.call):
            calls.reverse()
        lines = [*self._arrays(self.problem), *self._arrays(second, names)]
        lines += [*self._laid_out(self.problem), *self._laid_out(second, names), ""]
        for name, problem, own in calls:
            lines += self._output(name, problem, own)
        said = [
            "# exact: what the same function gives on the other arguments; the two must be the same, bit for bit."
        ]
        return [*self._constants(), *self._helpers(), *lines, "", *said, *self._verdict()]

    def _written(self) -> list[str]:
        """An argument before and after the call."""
        assert self.problem is not None
        name = self.case.what
        lines = [*self._arrays(self.problem), *self._laid_out(self.problem), "", f"before = numbers({name}).copy()",
                 self._call(self.problem), f'print("before", before.ravel(), "  after", numbers({name}).ravel())',
                 f"assert np.array_equal(numbers({name}), before, equal_nan=True), "
                 f'"the call has written to {name}"']  # fmt: skip
        return [*self._helpers(), *lines]

    def _raises(self) -> list[str]:
        """A call that must not raise."""
        return [*self._ready(), "try:", f"    {self._any_call()}", "except Exception as error:",
                '    raise AssertionError(f"the call raises {type(error).__name__}: {error}") from error']  # fmt: skip

    def _refuses(self) -> list[str]:
        """A call that must raise."""
        return [*self._ready(), "try:", f"    {self._any_call()}", "except Exception as error:",
                '    print(f"it raises, as it should: {error}")', "else:",
                '    raise AssertionError("sizes that do not fit, and no error")']  # fmt: skip

    def _contract(self) -> list[str]:
        """A call that must give certain shapes and dtypes."""
        call = self.case.call
        if self.problem is None:
            shapes, dtype = [call.shape], ""
        else:
            s, heads_last = self.problem.sizes, self.run.implementation.layout == "BLHD"
            rows = (s["B"], s["Q"], s["H"]) if heads_last else (s["B"], s["H"], s["Q"])
            shapes, dtype = [(*rows, s["E"]), rows][: 1 + self.problem.return_lse], self.run.dtype
        lines = [f"found = {self._any_call()}", "found = found if isinstance(found, tuple) else (found,)",
                 "print([(tuple(x.shape), x.dtype) for x in found])", f"assert len(found) == {len(shapes)}"]  # fmt: skip
        lines += [f"assert tuple(found[{i}].shape) == {tuple(x)}" for i, x in enumerate(shapes)]
        lines += [f'assert str(found[0].dtype).removeprefix("torch.") == "{dtype}"'] if dtype else []
        return [*self._ready(), *lines]

    def _ready(self) -> list[str]:
        if self.problem is None:
            return [*self._helpers(), *self._given(self.case.call.arguments), ""]
        placed = self._laid_out(self.problem)
        return [*self._helpers(), *self._arrays(self.problem), *placed, ""]

    def _any_call(self) -> str:
        return self._operation_call() if self.problem is None else self._call(self.problem)

    def _constants(self) -> list[str]:
        what = self.case.what.replace("result", self.run.implementation.operation)
        return [
            f"WORST = {self.case.location}  # the worst element of the {what}",
            f"BOUND = {_spelled(np.float64(self.case.bound), np.dtype(float))}",
            "",
        ]

    def _helpers(self) -> list[str]:
        lines = ["", "def numbers(x):", f"    return {NUMBERS[self.framework]}", "", ""]
        problems = [
            c.problem for c in (self.case.call, self.case.other) if c is not None and c.problem is not None
        ]
        used = {layout for p in problems for n, x in _arrays(p).items() if (layout := self._layout(p, n, x))}
        if self.reordered:
            lines += ["def reordered(x, axes):  # the same array, with its axes in this order in memory",
                      f"    return {REORDERED[self.framework]}", "", ""]  # fmt: skip
        for layout in sorted(used):
            lines += [f"def {layout.replace(' ', '_')}(x):", *_layout_lines(layout, self.framework), "", ""]
        return lines

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

    # -- arguments --

    def _arrays(self, problem: Problem, names: Mapping[str, str] | None = None) -> list[str]:
        """The arrays of a problem; with `names`, only those, under these names."""
        lines: list[str] = []
        for name, array in _arrays(problem).items():
            if (names is None or name in names) and (
                name != "upstream" or self.case.call.kind == "gradients"
            ):
                lines += self._array((names or {}).get(name, name), array)
        return lines

    def _array(self, name: str, array: Array) -> list[str]:
        """Lines that make the array, exactly."""
        array = np.asarray(array)
        if self.framework == "torch" and (array.size <= PRINTED or _constant(array)):
            where = ", device=DEVICE" if self.run.device != "cpu" else ""
            return _made(name, array, "torch.tensor({}, dtype=torch.{}" + where + ")",
                         "torch.full({}, {}, dtype=torch.{}" + where + ")")  # fmt: skip
        lines = self._numpy(name, array)
        if self.framework == "jax":
            return [*lines, f"{name} = jax.device_put({name}, DEVICE)"]
        if self.framework == "torch":
            wide = ".to(torch.bfloat16)" if array.dtype.name == "bfloat16" else ""
            where = ".to(DEVICE)" if self.run.device != "cpu" else ""
            return [*lines, f"{name} = torch.from_numpy({name}){wide}{where}"]
        return lines

    def _numpy(self, name: str, array: Array) -> list[str]:
        """Lines that make a NumPy array; bfloat16 in float32 where torch takes it over."""
        if array.dtype.name == "bfloat16" and self.framework == "torch":
            array = array.astype(np.float32)
        if array.dtype.name == "bfloat16":
            self.imports.add("import ml_dtypes")
        dtype = _dtype(array)
        if array.size <= PRINTED or _constant(array):
            return _made(name, array, "np.array({}, {})", "np.full({}, {}, {})", dtype)
        usual, few = _nearly_constant(array)
        if few is not None:
            values = ", ".join(_spelled(x, array.dtype) for x in array.reshape(-1)[few])
            return [f"{name} = np.full({array.shape}, {_spelled(usual, array.dtype)}, {dtype})",
                    *_filled(f"{name}.flat[[", map(str, few), f"]] = [{values}]")]  # fmt: skip
        self.imports |= {"import base64", "import zlib"}
        packed = base64.b64encode(zlib.compress(array.tobytes(), 9)).decode()
        pieces = [f'    "{packed[i : i + WIDTH - 6]}"' for i in range(0, len(packed), WIDTH - 6)]
        return [f"{name}_bytes = (", *pieces, ")",
                f"{name} = np.frombuffer(zlib.decompress(base64.b64decode({name}_bytes)), {dtype})"
                f".reshape({array.shape}).copy()"]  # fmt: skip

    def _laid_out(self, problem: Problem, names: Mapping[str, str] | None = None) -> list[str]:
        """Lines that bring the arrays into the function's order of axes and into their places in memory."""
        lines = []
        turned = self.run.implementation.layout == "BLHD"
        for name, array in _arrays(problem).items():
            if (names is not None and name not in names) or (
                name == "upstream" and self.case.call.kind != "gradients"
            ):
                continue
            own, text = (names or {}).get(name, name), (names or {}).get(name, name)
            if turned and name in ("query", "key", "value", "upstream"):
                text = f"{text}.swapaxes(1, 2)"
            layout, order = self._layout(problem, name, array), self._order(problem, name, array)
            if order and not turned:
                self.reordered, text = True, f"reordered({text}, {order})"
            text = f"{layout.replace(' ', '_')}({text})" if layout else text
            comment = "  # (batch, length, heads, size)" if text.startswith(f"{own}.swapaxes") else ""
            lines += [f"{own} = {text}{comment}"] if text != own else []
        return lines

    def _layout(self, problem: Problem, name: str, array: Array) -> str:
        """The memory layout that a script must make, or nothing: if one is declared."""
        given = problem.layouts.get(name, "contiguous")
        small = array.ndim < 2 and given not in ("offset", "every second")
        skipped = self.framework == "jax" or not array.size or small or given == "contiguous"
        return "" if skipped or (given == "heads after length" and array.ndim != 4) else given

    def _order(self, problem: Problem, name: str, array: Array) -> tuple[int, ...]:
        """The order of the axes in memory where none is declared and it is not their own, else nothing."""
        if self.framework == "jax" or name in problem.layouts or not array.size or array.flags.c_contiguous:
            return ()
        orders = itertools.permutations(range(array.ndim))
        return next((order for order in orders if array.transpose(order).flags.c_contiguous), ())

    def _keywords(self, problem: Problem, names: Mapping[str, str]) -> list[str]:
        options = {name: Named(names.get(name, name)) if isinstance(value, np.ndarray) else value
                   for name, value in problem.options.items()}  # fmt: skip
        keywords = self.run.implementation.keywords(options, grouped=problem.group != 1)
        return [f"{name}={_plain(value)!r}" for name, value in keywords.items()]

    def _call(self, problem: Problem, names: Mapping[str, str] | None = None) -> str:
        names = names or {}
        given = [names.get(name, name) for name in ("query", "key", "value")]
        return f"{self.place.alias}({', '.join([*given, *self._keywords(problem, names)])})"

    def _output(self, name: str, problem: Problem, names: Mapping[str, str] | None = None) -> list[str]:
        call = self._call(problem, names)
        if problem.return_lse:
            call += f"[{int(self.case.what == 'log-sum-exp')}]"
        turned = ".swapaxes(1, 2)" if self.run.implementation.layout == "BLHD" else ""
        return [f"{name} = numbers({call}){turned}"]

    def _gradients(self) -> list[str]:
        """The gradient under test: by the function's own vjp, or as the framework differentiates."""
        given = self.case.call.problem
        assert given is not None
        assert self.problem is not None
        which = self.case.what.removeprefix("gradient of ")
        leaves = ["query", "key", "value"]
        call = self._call(self.problem)
        first = f"{call}[0]" if self.problem.return_lse else call
        turned = ".swapaxes(1, 2)" if self.run.implementation.layout == "BLHD" and which != "bias" else ""
        if self.run.implementation.vjp is not None:
            arguments = [*leaves, "upstream", *self._keywords(self.problem, {})]
            lines = [f"gradients = {self.place.alias}_vjp({', '.join(arguments)})"]
        else:
            leaves += ["bias"] if self.problem.bias is not None and given.bias is self.problem.bias else []
            every = ", ".join(leaves)
            lines = {
                "torch": [f"{every} = (x.detach().requires_grad_() for x in ({every}))", f"output = {first}",
                          f"gradients = torch.autograd.grad(output, ({every}), upstream, materialize_grads=True)"],
                "jax": [f"output, pull = jax.vjp(lambda {every}: {first}, {every})", "gradients = pull(upstream)"],
            }[self.framework]  # fmt: skip
        return [*lines, f"got = numbers(gradients[{leaves.index(which)}]){turned}  # {', '.join(leaves)}"]

    # -- other operations --

    def _given(self, arguments: tuple[Any, ...]) -> list[str]:
        lines: list[str] = []
        for name, value in zip(OPERATIONS[self.case.call.kind], arguments, strict=False):
            lines += (
                self._array(name, value) if isinstance(value, np.ndarray) else [f"{name} = {_plain(value)!r}"]
            )
        return lines

    def _operation_call(self) -> str:
        names = OPERATIONS[self.case.call.kind][: len(self.case.call.arguments)]
        options = self.run.implementation.keywords(self.case.call.options)
        return (
            f"{self.place.alias}({', '.join([*names, *(f'{n}={_plain(x)!r}' for n, x in options.items())])})"
        )


class Named(str):
    """An argument that stands in a script under a name."""

    __slots__ = ()
    __repr__ = str.__str__


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _same_as(a: Problem, name: str, b: Problem) -> bool:
    """Whether an array of two problems is the same, in the same place."""
    x, y = getattr(a, name), getattr(b, name)
    return (
        x is not None
        and _same(x, y)
        and a.layouts.get(name) == b.layouts.get(name)
        and x.strides == y.strides
    )


def _one_mask(problem: Problem, run: Run) -> Problem:
    """A mask joins the bias where one parameter takes both, as the run does it."""
    own = run.implementation.parameters
    if problem.mask is None or problem.bias is None or own.get("mask") != own.get("bias"):
        return problem
    return problem.replace(
        mask=None, bias=np.where(problem.mask, problem.bias, -np.inf).astype(run.numpy_dtype)
    )


def _layout_lines(layout: str, framework: str) -> list[str]:
    if (layout, framework) in DIRECT:
        return [f"    return {DIRECT[layout, framework]}"]
    if layout == "offset":
        size = "x.size" if framework == "numpy" else "x.numel()"
        shape, view = f"({size} + 8,)", f"buffer[3 : 3 + {size}].reshape(x.shape)"
    else:
        shape, view = VIEWS[layout]
    return [f"    buffer = {AROUND[framework].format(shape=shape)}", f"    view = {view}", "    view[...] = x",
            "    return view"]  # fmt: skip


# -- numbers -------------------------------------------------------------------------------------------------------------


def _dtype(array: Array) -> str:
    name = array.dtype.name
    return {"bool": "bool", "bfloat16": "ml_dtypes.bfloat16"}.get(name, f"np.{name}")


def _made(name: str, array: Array, listed: str, full: str, dtype: str = "") -> list[str]:
    """A small or constant array: its numbers, or the one number that they all are."""
    dtype = dtype or array.dtype.name
    if array.size > 4 and _constant(array):
        return [f"{name} = {full.format(array.shape, _spelled(array.reshape(-1)[0], array.dtype), dtype)}"]
    opened, closed = listed.format("[\0]", dtype).split("\0")
    shape = f".reshape({', '.join(map(str, array.shape))})" if array.ndim != 1 else ""
    return _filled(
        f"{name} = {opened}", (_spelled(x, array.dtype) for x in array.reshape(-1)), closed + shape
    )


def _filled(before: str, items: Any, after: str) -> list[str]:
    """`before` a, b, c `after`, on as many lines as it takes."""
    line = re.sub(r"(?<!,) ", "\0", before + ", ".join(items) + after)  # a line may end after a comma only
    lines = textwrap.wrap(
        line, WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
    return [part.replace("\0", " ") for part in lines]


def _spelled(x: Any, dtype: Any) -> str:
    """The shortest text of a number that gives this number back in its dtype."""
    if dtype.kind in "iub":
        return str(int(x))
    value = float(x)
    if not np.isfinite(value):
        return "np.nan" if np.isnan(value) else "np.inf" if value > 0 else "-np.inf"
    if value == 0:
        return "-0.0" if np.signbit(value) else "0"
    texts = (f"{value:.{digits}g}" for digits in range(1, 18))
    return next((text for text in texts if dtype.type(float(text)) == x), repr(value))


def _constant(array: Array) -> bool:
    return array.size > 0 and array.tobytes() == array.reshape(-1)[0].tobytes() * array.size


def _nearly_constant(array: Array, few: int = 40) -> tuple[Any, list[int] | None]:
    """The most frequent number and the places of the others, if they are few."""
    flat = array.reshape(-1)
    bits = np.frombuffer(array.tobytes(), f"V{array.itemsize}")
    values, counts = np.unique(bits, return_counts=True)
    places = np.flatnonzero(bits != values[counts.argmax()])
    usual = flat[np.flatnonzero(bits == values[counts.argmax()])[0]]
    return usual, [int(i) for i in places] if len(places) <= few else None


# -- the same in float64 -------------------------------------------------------------------------------------------------


def _steps(problem: Problem, what: str) -> list[str]:
    """Textbook attention, or one of its gradients, with the options of this problem and no other."""
    s, p = problem.sizes, problem
    if not s["K"]:
        return [f"exact = np.zeros({(s['B'], s['H'], s['Q'], s['E'])})  # no key, nothing to average"]
    scale = p.scale if p.scale is not None else max(s["D"], 1) ** -0.5
    lines = [
        "# What it is by definition, in float64.",
        "q, k, v = numbers(query), numbers(key), numbers(value)",
    ]
    if p.group > 1:
        lines.append(
            f"k, v = np.repeat(k, {p.group}, axis=1), np.repeat(v, {p.group}, axis=1)  # heads that share keys"
        )
    lines.append(f"scores = q @ k.swapaxes(-1, -2) * {_plain(scale)!r}")
    capped = p.softcap is not None and bool(np.isfinite(p.softcap))
    if capped:
        lines += [f"capped = np.tanh(scores / {p.softcap!r})", f"scores = {p.softcap!r} * capped"]
    lines += ["scores = scores + numbers(bias)"] if p.bias is not None else []
    lines += _hidden(p)
    if p.sinks is not None:
        lines += [f"sink = np.broadcast_to(numbers(sinks)[:, None, None], {(s['B'], s['H'], s['Q'], 1)})",
                  "scores = np.concatenate([scores, sink], axis=-1)"]  # fmt: skip
    lines += _softmax(p, what)
    return lines + (_backward(p, what, scale, capped) if what.startswith("gradient") else [])


def _hidden(p: Problem) -> list[str]:
    """ALiBi, and what hides keys."""
    s, lines = p.sizes, []
    start = s["K"] - s["Q"] if p.causal_alignment == "bottom-right" else 0
    left, right = p.window or (None, None)
    if p.causal or p.window is not None or p.alibi_slopes is not None:
        after = f" - {start}" if start > 0 else f" + {-start}" if start else ""
        lines.append(
            f"ahead = np.arange({s['K']}) - np.arange({s['Q']})[:, None]{after}  # how far after the query a key is"
        )
    if p.alibi_slopes is not None:
        lines.append("scores = scores - numbers(alibi_slopes)[:, None, None] * abs(ahead)")
    shown = {"ahead <= 0": p.causal, f"ahead >= -{left}": left is not None, f"ahead <= {right}": right is not None,
             f"np.arange({s['K']}) < numbers(key_lengths)[:, None, None, None]": p.key_lengths is not None,
             "numbers(mask) > 0": p.mask is not None}  # fmt: skip
    return lines + [f"scores = np.where({seen}, scores, -np.inf)" for seen, used in shown.items() if used]


def _softmax(p: Problem, what: str) -> list[str]:
    """Weights, and the output or the log-sum-exp."""
    empty = p.sinks is None and not p.some_visible.all()
    lines = ["top = scores.max(axis=-1, keepdims=True)"]
    lines += ["top = np.where(top == -np.inf, 0, top)  # of a query that sees no key"] if empty else []
    lines += ["weights = np.exp(scores - top)", "total = weights.sum(axis=-1, keepdims=True)"]
    if what == "log-sum-exp":
        return [*lines, "exact = (np.log(total) + top)[..., 0]"]
    lines.append(f"weights = weights / {'np.where(total == 0, 1, total)' if empty else 'total'}")
    lines += ["weights = weights[..., :-1]  # a sink has no value"] if p.sinks is not None else []
    used = p.empty_rows == "uniform" and what in ("output", "gradient of value")
    used = used or (p.empty_rows == "nan" and what == "output")
    if empty and used:
        given = "np.nan" if p.empty_rows == "nan" else f"1 / {p.sizes['K']}"
        lines.append(
            f"weights = np.where(total == 0, {given}, weights)  # of a query that sees no key, as declared"
        )
    return [*lines, "exact = weights @ v"] if what == "output" else lines


def _backward(p: Problem, what: str, scale: float, capped: bool) -> list[str]:
    """The gradient of sum(upstream * output) in what is asked for."""
    s, which = p.sizes, what.removeprefix("gradient of ")
    shared = f".reshape({s['B']}, {s['G']}, {p.group}, {s['K']}, -1).sum(axis=2)" if p.group > 1 else ""
    lines = ["g = numbers(upstream)"]
    if which == "value":
        return [*lines, f"exact = (weights.swapaxes(-1, -2) @ g){shared}"]
    lines += ["d_weights = g @ v.swapaxes(-1, -2)",
              "d_scores = weights * (d_weights - (weights * d_weights).sum(axis=-1, keepdims=True))"]  # fmt: skip
    if which == "bias":
        assert p.bias is not None
        aligned = (1,) * (4 - p.bias.ndim) + p.bias.shape
        axes = tuple(i for i, n in enumerate(aligned) if n == 1)
        return [*lines, f"exact = d_scores.sum(axis={axes}, keepdims=True).reshape({p.bias.shape})"]
    lines += ["d_scores = d_scores * (1 - capped**2)"] if capped else []
    lines.append(f"d_scores = d_scores * {_plain(scale)!r}")
    if which == "query":
        return [*lines, "exact = d_scores @ k"]
    return [*lines, f"exact = (d_scores.swapaxes(-1, -2) @ q){shared}"]


def _softmax_steps(call: Recorded, run: Run) -> list[str]:
    return ["# What it is by definition, in float64.", "s = numbers(scores)",
            "weights = np.exp(s - s.max(axis=-1, keepdims=True))",
            "exact = weights / weights.sum(axis=-1, keepdims=True)"]  # fmt: skip


def _joined(call: Recorded, run: Run, first: str, second: str, shape: str) -> str:
    """Pairs as neighbours, or as two halves."""
    layout = call.options.get("layout", run.failing.get("layout", "interleaved"))
    if layout == "interleaved":
        return f"exact = np.stack([{first}, {second}], axis=-1).reshape({shape})  # neighbours make a pair"
    return f"exact = np.concatenate([{first}, {second}], axis=-1)  # one from each half makes a pair"


def _encoding_steps(call: Recorded, run: Run) -> list[str]:
    return ["# What it is by definition, in float64.",
            "angle = np.arange(length)[:, None] / 10000.0 ** (np.arange(0, dim, 2) / dim)",
            _joined(call, run, "np.sin(angle)", "np.cos(angle)", "length, dim")]  # fmt: skip


def _rotary_steps(call: Recorded, run: Run) -> list[str]:
    layout = call.options.get("layout", run.failing.get("layout", "interleaved"))
    size = call.arguments[0].shape[-1]
    pair = (
        "y[..., 0::2], y[..., 1::2]"
        if layout == "interleaved"
        else f"y[..., :{size // 2}], y[..., {size // 2}:]"
    )
    return ["# What it is by definition, in float64.", "y = numbers(x)",
            f"angle = numbers(positions)[:, None] / 10000.0 ** (np.arange(0, {size}, 2) / {size})", f"a, b = {pair}",
            "first, second = a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)",
            _joined(call, run, "first", "second", "y.shape")]  # fmt: skip


def _slopes_steps(call: Recorded, run: Run) -> list[str]:
    heads = int(call.arguments[0])
    power = 2 ** max(heads.bit_length() - 1, 0)
    return ["# What it is by definition, in float64.",
            f"slopes = 2.0 ** (-8.0 / {power} * np.arange(1, {power + 1}))",
            f"between = 2.0 ** (-4.0 / {power} * np.arange(1, {2 * power + 1}, 2))",
            f"exact = np.concatenate([slopes, between])[:{heads}]"]  # fmt: skip


def _multi_head_steps(call: Recorded, run: Run) -> list[str]:
    heads = call.options["heads"]
    length = call.arguments[0].shape[1]
    lines = ["# What it is by definition, in float64.", "y = numbers(x)",
             f"q, k, v = ((y @ numbers(w)).reshape(*y.shape[:2], {heads}, -1).swapaxes(1, 2) for w in (w_q, w_k, w_v))",
             "scores = q @ k.swapaxes(-1, -2) / q.shape[-1] ** 0.5"]  # fmt: skip
    if call.options.get("causal"):
        lines.append(f"scores = np.where(np.tri({length}) > 0, scores, -np.inf)")
    return [*lines, "weights = np.exp(scores - scores.max(axis=-1, keepdims=True))",
            "weights = weights / weights.sum(axis=-1, keepdims=True)",
            "exact = (weights @ v).swapaxes(1, 2).reshape(*y.shape[:2], -1) @ numbers(w_o)"]  # fmt: skip


OPERATION_STEPS: Mapping[str, Callable[[Recorded, Run], list[str]]] = {
    "softmax": _softmax_steps, "positional_encoding": _encoding_steps, "rotary": _rotary_steps,
    "alibi_slopes": _slopes_steps, "multi_head_attention": _multi_head_steps,
}  # fmt: skip
