"""`@law`: a property with a sentence, a source, and what its arguments are drawn from.

    @law("A row of attention weights sums to one.", source="softmax definition", problem=problems(values="identity"))
    def test_rows_sum_to_one(run, problem):
        weights = run(problem)
        assert_within_bound(weights.sum(-1), problem.some_visible)

The decorated function is an ordinary pytest test of one parameter, `run`; the plugin supplies one run for every
implementation, device and dtype. What stands in `needs` an implementation must offer, else the law is "not offered" there.
Inside, a Hypothesis test is built afresh for each run, so that examples are stored for each cell on its own and one law can
be checked at several profiles in one process.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import SkipTest

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import (
    Flaky,
    HypothesisDeprecationWarning,
    HypothesisWarning,
    InvalidArgument,
    Unsatisfiable,
    UnsatisfiedAssumption,
)
from hypothesis.reporting import with_reporter

from qkverify import foreign_text
from qkverify.counterexamples import store
from qkverify.counterexamples.call_in_words import call_in_words, said_by_the_call
from qkverify.counterexamples.causes import diagnosed
from qkverify.counterexamples.diagnosis import looks_like
from qkverify.errors import ContractError, DeviceLost, HarnessError, LawViolation, UnsupportedCase
from qkverify.problem.attention_problem import Problem
from qkverify.problem.byte_strategies import Argument, together
from qkverify.runs import watch
from qkverify.runs.assertions import Evidence
from qkverify.runs.raising_conditions import call_of
from qkverify.runs.run import Run

SEED = "QKVERIFY_SEED"  # environment: the same problems in every run and process, as CI wants them
REFUSALS = 40  # problems that an implementation may refuse, all of them, before its law counts as not offered
FEWEST = (
    3  # examples that a small effort leaves: Hypothesis begins with the simplest problem, which says least
)
PROFILES: Mapping[str, int] = {"glance": 5, "quick": 25, "default": 100, "thorough": 2000, "ci": 100}

# Hypothesis calls the body with problems that cost milliseconds; its clocks would only add noise.
_ALWAYS: dict[str, Any] = {
    "deadline": None,
    "report_multiple_bugs": False,
    "phases": (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),  # our message explains
    "print_blob": False,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
}


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """What Hypothesis would print or warn of (arguments that are long to write), the verdict says."""
    with with_reporter(lambda _: None), warnings.catch_warnings():
        warnings.simplefilter("ignore", HypothesisWarning)
        yield


@contextlib.contextmanager
def _older_objects_frozen() -> Iterator[None]:
    """Spare the garbage collector the modules that were there before: every full collection visits all of them, and with torch
    imported that is a sixth of a check's time.

    What is thawed belongs to the oldest generation, garbage too, and that one is collected once it has grown by a quarter: so
    the garbage of a check, arrays among it, goes before.
    """
    if gc.get_freeze_count():  # somebody else's, who unfreezes them in their own time
        yield
        return
    gc.collect(1)
    gc.freeze()
    try:
        yield
    finally:
        gc.collect()
        gc.unfreeze()


@dataclass(frozen=True, eq=False)
class Law:
    """One law: `body(run, **drawn)` raises LawViolation where it is broken."""

    name: str
    family: str
    sentence: str
    source: str
    body: Callable[..., None]
    arguments: Mapping[str, Argument]
    needs: tuple[str, ...] = ()
    operations: tuple[str, ...] = ("attention",)
    exact: bool = False
    dtypes: tuple[str, ...] = ()
    when: Callable[[Run], str | None] | None = None
    weight: float = 1.0
    chance: bool = False

    @property
    def file(self) -> str:
        """The file of the law."""
        return self.body.__code__.co_filename

    def unfit(self, run: Run) -> str | None:
        """Why this law does not apply to a run ("not offered"), or None."""
        missing = [name for name in self.needs if not run.offers(name)]
        if missing:
            return f"not offered: {', '.join(missing)}"
        if self.dtypes and run.dtype not in self.dtypes:
            return f"speaks of {', '.join(self.dtypes)} only"
        return self.when(run) if self.when is not None else None

    def examples(self, usual: int, effort: float) -> int:
        """How many examples are generated where `usual` are asked for, of an implementation with this effort."""
        weighted = usual * self.weight
        return max(1, min(round(weighted), FEWEST), round(weighted * effort))

    def check(
        self,
        run: Run,
        *,
        max_examples: int | None = None,
        seed: int | None = None,
        spared: Callable[[Sequence[Problem]], bool] | None = None,
        **overrides: Any,
    ) -> None:
        """Check the law on a run with generated problems. Raises what the smallest counterexample raises.

        `seed` makes the generation repeatable; `overrides` are Hypothesis settings. A failure on problems that are `spared`
        counts for nothing. Raises UnsupportedCase where the
        implementation refused every problem, and DeviceLost on the first problem after which its device answers no more.
        """
        examples = settings().max_examples if max_examples is None else max_examples
        effort = run.implementation.effort.get(run.device, 1.0)
        law_settings: dict[str, Any] = {"max_examples": self.examples(examples, effort)}
        if self.chance:
            law_settings["phases"] = tuple(phase for phase in _ALWAYS["phases"] if phase is not Phase.shrink)
        test = settings(**{**_ALWAYS, **law_settings, **overrides})(
            given(together(self.arguments))(self._example(run, spared))
        )
        if seed is None and SEED in os.environ:
            seed = int(os.environ[SEED])
        if seed is not None:
            test = hypothesis.seed(seed)(test)
        with run.activated(), _silenced(), _older_objects_frozen():
            try:
                test()
            except SkipTest as ended:
                if isinstance(ended.__cause__, DeviceLost):
                    raise ended.__cause__ from None
                raise UnsupportedCase(str(ended)) from ended
            except Unsatisfiable as error:
                raise UnsupportedCase(_why_none(self, run)) from error
            except InvalidArgument as error:
                raise HarnessError(f"{self.name} draws what Hypothesis does not take: {error}") from error
            except Flaky as flaky:
                raise LawViolation(
                    "a problem broke the law once, and then the law held: the result depends on earlier calls, or is random"
                ) from flaky
            except (LawViolation, ContractError) as broken:
                broken.__notes__ = []  # Hypothesis repeats the arguments, which our message has shown
                raise

    def replay(self, run: Run, drawn: Mapping[str, Any]) -> None:
        """Check the law on given arguments instead of generated ones."""
        with run.activated(), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", HypothesisDeprecationWarning
            )  # assume() outside of a Hypothesis test
            run.begin_example()
            self.body(run, **drawn)

    def _example(
        self, run: Run, spared: Callable[[Sequence[Problem]], bool] | None = None
    ) -> Callable[..., None]:
        """The body for one example, under the cell's own name: Hypothesis stores failing examples by it."""

        def example(drawn: dict[str, Any]) -> None:
            run.begin_example()
            watch.example(drawn)
            try:
                self.body(run, **drawn)
                run.compared.end_example()
            except UnsatisfiedAssumption:
                run.examples -= 1  # it never came to the law
                raise
            except UnsupportedCase as refusal:
                run.refusals += 1
                enough = REFUSALS * min(run.implementation.effort.get(run.device, 1.0) * 2, 1.0)
                if (
                    run.refusals == run.examples > enough
                ):  # it refuses all there is: SkipTest ends a Hypothesis test at once
                    raise SkipTest(foreign_text.shown(refusal)) from refusal
                hypothesis.reject()
            except Exception as error:
                if said := run.framework.lost(
                    run.device
                ):  # SkipTest again: every later problem would fail, and shrink
                    run.failing = drawn
                    raise SkipTest(said) from DeviceLost(said)
                if spared is not None and spared(run.problems):
                    return
                run.failing = drawn
                if run.problems and not isinstance(error, LawViolation | ContractError | HarnessError):
                    run.raised.add(
                        call_of(
                            run.problems[-1],
                            run.offers("gradients") and run.problems[-1].upstream is not None,
                        )
                    )
                raise

        example.__name__ = example.__qualname__ = re.sub(r"\W", "_", f"{self.name}_of_{run.cell}")
        example.__module__ = self.body.__module__
        return example


def family_of(file: Path) -> str:
    """The family of a file's laws: "masking" of `test_masking.py`, "layers" of `properties/layers/test_encoder.py`."""
    in_folder = file.parent.parent.name == "properties" and (file.parent / "__init__.py").is_file()
    return file.parent.name if in_folder else file.stem.removeprefix("test_")


def law(sentence: str, *, source: str, needs: tuple[str, ...] | str = (), operation: tuple[str, ...] | str = "attention",
        exact: bool = False, dtypes: tuple[str, ...] = (), when: Callable[[Run], str | None] | None = None, weight: float = 1.0,
        chance: bool = False, **arguments: Argument) -> Callable[[Callable[..., None]], Callable[[Run], None]]:  # fmt: skip
    """Make a function `(run, problem, ...)` a law. It raises an error if the property does not hold.

    - `sentence`: the property in words; a failure prints it
    - `source`: where the law comes from
    - `needs`: options (or "gradients") that an implementation must offer
    - `operation`: the operation, or operations, that the law is about
    - `exact`: True if the law compares bit for bit, and not within the derived bound
    - `dtypes`: the dtypes that it applies to; by default all
    - `when`: a function from a run to None, or to the reason why the law does not apply
    - `weight`: the share of the profile's examples that it gets; a law with few possible inputs needs fewer
    - `chance`: True if a failure may not repeat, as with threads; then nothing is shrunk
    - `arguments`: for each further parameter a Hypothesis strategy, or a tuple of candidates, the simplest first
    """

    def decorate(body: Callable[..., None]) -> Callable[[Run], None]:
        family = family_of(Path(body.__code__.co_filename))
        described = Law(body.__name__.removeprefix("test_"), family, sentence, source, body, arguments,
                        _names(needs), _names(operation), exact, dtypes, when, weight, chance)  # fmt: skip

        def test(run: Run) -> None:
            described.check(run)

        functools.update_wrapper(test, body)
        del test.__wrapped__  # type: ignore[attr-defined]  # pytest would read the parameters off the body
        test.law = described  # type: ignore[attr-defined]
        return test

    return decorate


def _why_none(checked: Law, run: Run) -> str:
    """Why no problem of a law came through: each was refused, or none was drawn that is one for the implementation."""
    if run.refused:
        return f"{run.implementation.name} refuses every problem of {checked.name}: {run.refusal}"
    requires = ", ".join(run.implementation.requires)
    return f"no problem of {checked.name} was drawn that {run.implementation.name} takes" + (
        f": it requires {requires}" if requires else ""
    )


def _names(one_or_more: tuple[str, ...] | str) -> tuple[str, ...]:
    return (one_or_more,) if isinstance(one_or_more, str) else tuple(one_or_more)


def explain(
    broken: BaseException, checked: Law, run: Run, *, replay: str = "", diagnosis: str | None = None
) -> str:
    """A failure as a person reads it: the law, what it looks like, the smallest problem, the worst element, how to see it again.

    Without a `diagnosis`, "" for none, one is made.
    """
    lines = [f"{checked.name}: {checked.sentence}", f"  implementation     {run.cell}"]
    if run.problems:
        first, *rest = run.problems[0].describe().splitlines()
        kind = (
            "first problem" if isinstance(broken, DeviceLost) else "smallest problem"
        )  # nothing shrinks any more
        lines.append(f"  {kind:18} {first}")
        lines += [f"    {line}" for line in rest]
    # None is a keyword that is left out.
    extra = {name: value for name, value in run.failing.items() if name != "problem" and value is not None}
    numbers = [] if run.problems else call_in_words(run)
    lines += [
        f"  {name:18} {value!r}"
        for name, value in extra.items()
        if not (numbers and said_by_the_call(name, value, run))
    ]
    lines += [f"    {line}" if i else f"  {'smallest call':18} {line}" for i, line in enumerate(numbers)]
    if isinstance(broken, LawViolation) and isinstance(broken.evidence, Evidence):
        lines += [
            f"  at {line}" if i == 0 else f"  {line.strip()}"
            for i, line in enumerate(str(broken).splitlines())
        ]
    else:
        ours = isinstance(broken, LawViolation | ContractError | HarnessError)
        lines.append(f"  {foreign_text.shown(broken) if ours else foreign_text.of_error(broken)}")
    if diagnosis is None:
        dropped = checked.family == "dropout"
        diagnosis = (
            looks_like(run, dropped=dropped) if isinstance(broken, LawViolation | ContractError) else ""
        )
    if replay:
        lines.append(f"  again:   qkverify replay {replay}")
        written = store.script_of(replay)
        lines += [f"  script without qkverify: {written}"] if written else []
    return foreign_text.escaped(diagnosed("\n".join(lines), diagnosis))
