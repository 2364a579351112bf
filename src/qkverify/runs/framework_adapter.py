"""What stands between the laws and a function: arrays go over in its framework, layout and dtype, what comes back is checked,
and gets the bound that was derived beside it. What every run needs, whatever it calls, is here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from unittest import SkipTest

import ml_dtypes
import numpy as np
from hypothesis.errors import HypothesisException

from qkverify import foreign_text
from qkverify.contract import EVERY_KEY, Implementation, frameworks, mask_forms, messages
from qkverify.contract.axes import option_to_function, to_contract, to_function
from qkverify.contract.frameworks.views import owner_of
from qkverify.errors import ContractError, HarnessError, UnsupportedCase
from qkverify.problem.attention_problem import LAYOUTS, Problem
from qkverify.results import LooserModel
from qkverify.rounding import EXACT, FLOAT64, FORMATS, Bounded, Precision
from qkverify.runs import watch
from qkverify.runs.comparisons import Comparisons, Returned
from qkverify.runs.raising_conditions import CallShape, call_of

NUMPY_DTYPES: Mapping[str, Any] = {"float64": np.float64, "float32": np.float32, "float16": np.float16,
                                   "bfloat16": ml_dtypes.bfloat16}  # fmt: skip
DEFAULTS = {"causal_alignment": "bottom-right", "empty_rows": "zero", "masked_values": "read", "deterministic": "no",
            "batch_invariant": "no", "delta": "weights", "lse": "natural", "empty_lse": "-inf",
            "mismatched_sizes": "raise"}  # fmt: skip

_NOT_ITS_OWN = (SkipTest, HypothesisException, HarnessError)  # words of the harness and of its libraries


class FrameworkAdapter:
    """`semantics` are the conventions it is held to: declared ones, and what `conventions.detect` found."""

    def __init__(self, implementation: Implementation, device: str = "cpu", dtype: str = "float32",
                 semantics: Mapping[str, str] | None = None, precision: Precision | None = None,
                 gradient_precision: Precision | None = None) -> None:  # fmt: skip
        self.implementation = implementation
        self.device = device
        self.dtype = dtype
        self.framework = self._framework()
        self.semantics = {**DEFAULTS, **implementation.semantics, **(semantics or {})}
        forward = precision or _precision(implementation, device, dtype)
        backward = gradient_precision or _gradient_precision(implementation, dtype, forward)
        self.precision, self.gradient_precision = (
            _with_choices(model, self.semantics) for model in (forward, backward)
        )
        self.looser: tuple[LooserModel, ...] = ()  # models that were granted to it
        self.largest_margin = 0.0
        self.examples = 0
        self.refusals = 0
        self.calls = 0  # of the implementation: a law that made none has shown nothing
        self.refused, self.refusal = (
            0,
            "",
        )  # of them, by the implementation or its framework, and in which words first
        self.compared = Comparisons()  # examples that held a result against the reference
        self.used: set[str] = (
            set()
        )  # options, and "gradients", of calls that came back: the others are not verified
        self._asked: set[str] = set()  # those of the calls that are being prepared
        self.failing: dict[str, Any] = {}  # what was drawn for the example that failed last
        self.problems: list[
            Problem
        ] = []  # those of the current example: the first one is what a failure prints
        self.requests: list[
            tuple[tuple[Any, ...], dict[str, Any]]
        ] = []  # as `problems`, of another operation
        self.returned: set[CallShape] = (
            set()
        )  # the kinds of calls of attention that came back, over all examples
        self.raised: set[CallShape] = set()  # and those that ended examples by an exception
        self._cache: dict[tuple[Any, ...], Any] = {}

    def _framework(self) -> Any:
        """Where its arrays come from; see `frameworks`."""
        return frameworks.get(self.implementation.arrays)

    def __repr__(self) -> str:
        return self.cell

    @property
    def cell(self) -> str:
        """The name of this cell in test ids and reports."""
        return f"{self.implementation.name}-{self.device}-{self.dtype}"

    @property
    def numpy_dtype(self) -> Any:
        return NUMPY_DTYPES[self.dtype]

    def offers(self, *names: str) -> bool:
        """Whether the implementation offers all of these options."""
        return all(name in self.implementation.offers for name in names)

    def offers_parameter(self, name: str) -> bool:
        """Whether the function of another operation takes a keyword of this name."""
        return name in self.implementation.parameters

    @property
    def adds_in_order(self) -> bool:
        """Whether sums are made in one order, call by call: as declared, else as found by the same call several times. On a GPU
        atomic additions come in any order (torch: "Memory Efficient attention defaults to a non-deterministic algorithm"),
        on a CPU the tiles of a pool of threads may."""
        return self.semantics["deterministic"] == "yes"

    def begin_example(self) -> None:
        self.examples += 1
        self.problems = []
        self.requests = []
        self._cache = {}
        self.compared.begin_example()

    def _keywords(
        self, options: Mapping[str, Any], problem: Problem | None = None, size: int = 0
    ) -> dict[str, Any]:
        """The call's own keywords, and a note of what it is asked for. `size` is D where there is no problem."""
        grouped, size = (problem.group != 1, problem.sizes["D"]) if problem is not None else (False, size)
        keywords = self.implementation.keywords(options, grouped=grouped, size=size)
        asked = {name for name, value in options.items() if value is not None and value is not False}
        if problem is not None and problem.mask is None and "mask" in self.implementation.neutral:
            asked -= {"mask"}
        self._asked |= asked
        return keywords

    def within(self, got: np.ndarray, exact: Bounded) -> Bounded:
        """`got` with the bound that was derived beside `exact`."""
        return self._with_bound(got, self._oracle_included(exact))

    def bounded(self, array: Any, precision: Precision | None = None) -> Bounded:
        """Exact numbers of the dtype under test, as the reference takes them."""
        return Bounded(
            np.asarray(array, dtype=np.float64), 0.0, precision or self.precision, FORMATS[self.dtype].unit
        )

    # -- the adapter -------------------------------------------------------------------------------------------------

    def _native(self, problem: Problem) -> tuple[dict[str, Any], dict[str, Any]]:
        if rule := self.implementation.refuses(problem.sizes, problem.options):
            raise UnsupportedCase(
                f"{self.implementation.name} raises an error unless {rule}, as its first calls showed"
            )
        native = {
            name: self._laid_out(getattr(problem, name), problem.layouts.get(name))
            for name in ("query", "key", "value")
        }
        options = dict(self.with_required_mask(problem).options)
        # One parameter takes either: the mask becomes -inf in the bias.
        if {"mask", "bias"} <= options.keys() and self.one_parameter():
            options["bias"] = np.where(options.pop("mask"), options["bias"], -np.inf).astype(self.numpy_dtype)
        for name, value in options.items():
            if isinstance(value, np.ndarray):
                if name in ("mask", "bias"):
                    value = self.option_as_taken(name, value, problem.sizes)
                options[name] = self.framework.from_numpy(
                    _relaid(value, problem.layouts.get(name)), self.device
                )
        return native, options

    def with_required_mask(self, problem: Problem) -> Problem:
        """With a mask that hides nothing where the function must be given one and the problem has none."""
        needed = self.implementation.neutral.get("mask") == EVERY_KEY and problem.mask is None
        if not needed or (problem.bias is not None and self.one_parameter()):
            return problem
        return problem.replace(mask=np.ones((1, 1, 1, problem.sizes["K"]), dtype=bool))

    def option_as_taken(self, name: str, value: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
        """A mask or bias that broadcasts to (B,H,Q,K), as the function takes it."""
        form = self.implementation.mask_form
        if not form or (name == "bias" and not self.one_parameter()):
            return np.asarray(option_to_function(value, self.implementation.layout))
        if name == "mask":
            value = mask_forms.as_taken(value, form, sizes, self.numpy_dtype)
        else:
            value = mask_forms.reduced(value, form, sizes)
        whole = mask_forms.takes_all_axes(form)
        return np.asarray(option_to_function(value, self.implementation.layout) if whole else value)

    def one_parameter(self) -> bool:
        """Whether mask and bias are given by one parameter of the function."""
        names = self.implementation.parameters
        return names.get("mask") == names.get("bias")

    def _laid_out(self, array: Any, layout: str | None) -> Any:
        if self.implementation.layout[0] != "B" and layout == "batch of stride zero":
            layout = None  # the first axis is no batch
        if self.implementation.layout != "BHLD" and layout == "overlapping rows":
            layout = None  # the axis before the last is not the length
        array = to_function(np.asarray(array), self.implementation.layout)
        return self.framework.from_numpy(_relaid(array, layout), self.device)

    def heads_first(self, native: Any) -> Any:
        """What the function gives, as (B,H,L,D)."""
        return to_contract(native, self.implementation.layout)

    def as_taken(self, native: Any) -> Any:
        """(B,H,L,D) as the function takes it."""
        return to_function(native, self.implementation.layout)

    def _guarded(self, call: Callable[[], Any]) -> Any:
        """A refusal of the framework is a refusal of the implementation; any other error passes through.

        What would end more than the call, as `sys.exit` does, or would be taken for the harness's own word, is a failure of the
        implementation. In the judge's own process Ctrl-C is the user's.
        """
        self.calls += 1
        try:
            with watch.call(), messages.calling(self.implementation.name):
                returned = call()
            self.used |= self._asked
            if self.problems:
                self.returned.add(call_of(self.problems[-1], "gradients" in self._asked))
            return returned
        except (UnsupportedCase, *self.framework.REFUSALS) as refusal:
            self.refused += 1
            self.refusal = self.refusal or foreign_text.shown_line(refusal, characters=120)
            raise UnsupportedCase(foreign_text.shown(refusal)) from refusal
        except BaseException as error:
            if watch.is_users_interrupt(error):
                raise
            if isinstance(error, Exception) and not isinstance(error, _NOT_ITS_OWN):
                raise
            why = (
                "which test runners take for their own"
                if isinstance(error, Exception)
                else "which is no Exception: it ends the process of a caller who does not know of it"
            )
            raise ContractError(f"the call raises {foreign_text.of_error(error)}, {why}") from error
        finally:
            self._asked.clear()

    def _received(
        self, native: Any, what: str, shape: tuple[int, ...], dtype: str | None, heads: bool = True
    ) -> np.ndarray:
        with watch.call():  # attributes of a result may be code of the implementation
            return self._checked_result(native, what, shape, dtype, heads)

    def _checked_result(
        self, native: Any, what: str, shape: tuple[int, ...], dtype: str | None, heads: bool
    ) -> np.ndarray:
        name = self.implementation.name
        if not hasattr(native, "shape"):
            raise ContractError(
                f"{name}: the {what} is a {type(native).__name__}, expected an array of shape {shape}"
            )
        layout = self.implementation.layout
        if heads and layout != "BHLD" and what in ("output", "log-sum-exp"):
            native = (
                to_contract(native, layout) if native.ndim >= len(layout) - (what != "output") else native
            )
        if tuple(native.shape) != tuple(shape):
            raise ContractError(
                f"{name}: the {what} has shape {tuple(native.shape)}, expected {tuple(shape)}"
            )
        wider = self.implementation.result_dtypes.get(dtype or "")
        if dtype is not None and self.framework.dtype_of(native) not in (dtype, wider):
            raise ContractError(
                f"{name}: the {what} has dtype {self.framework.dtype_of(native)}, expected {dtype}"
            )
        array = np.array(
            self.framework.to_numpy(native)
        )  # a copy: the next call may write to the same buffer
        self.compared.came_back(array, what)
        return array

    # -- bounds ------------------------------------------------------------------------------------------------------

    def _bounded_options(self, problem: Problem, precision: Precision) -> dict[str, Any]:
        """The reference's options. A scale or cap is rounded to the working precision before it is used."""
        options = problem.reference_options
        options.setdefault("scale", problem.sizes["D"] ** -0.5 if problem.sizes["D"] else 1.0)
        unit = precision.accumulate.unit
        for name in ("scale", "softcap"):
            if name in options:
                options[name] = Bounded(options[name], np.asarray(abs(options[name]) * unit), precision)
        for name in ("bias", "alibi_slopes", "sinks"):
            if name in options:
                options[name] = self.bounded(options[name], precision)
        return options

    def _oracle_included(self, exact: Bounded) -> Bounded:
        """The reference rounds as well, as a float64 implementation would: its share of the bound is added."""
        error = exact.errors * (1.0 + FLOAT64.unit / self.precision.accumulate.unit)
        if np.isnan(error).any():  # inf * 0 on the way: nothing can be said
            error = np.where(np.isnan(error) & ~np.isnan(exact.value), np.inf, error)
        return Bounded(exact.value, error, EXACT)

    def _with_bound(self, got: np.ndarray, exact: Bounded) -> Bounded:
        value = got.astype(np.float64)
        if not np.isfinite(value).all():  # where nothing can be said, NaN would say something in what follows
            value = np.where(np.isposinf(exact.errors) & ~np.isfinite(value), 0.0, value)
        return Returned(value, exact.error, EXACT, reference=exact.value, kind=self.compared.kind_of(got))


def _precision(implementation: Implementation, device: str, dtype: str) -> Precision:
    """What is declared; else plain arithmetic in full precision, and a fused kernel's in half precision."""
    declared = implementation.declared_precision(device, dtype)
    if isinstance(declared, Precision):
        return declared
    if dtype in ("float64", "float32") and declared != "tf32":
        return Precision.plain(dtype)
    return Precision.named(declared or "fused", dtype)


# Convention -> the value that says that a result is rounded once more, to the output format, and the field that it fills.
STORED = {
    "head_gradients": ("stored", "parts"),
    "row_sum": ("rounded", "row_sum"),
    "split_results": ("stored", "splits"),
}


def _with_choices(model: Precision, semantics: Mapping[str, str]) -> Precision:
    """The model, with what an implementation declares to round besides, or was found to."""
    if semantics.get("exponent") == "contracted":
        model = replace(model, contracted=True)
    if semantics.get("merges") == "in sequence":
        model = replace(model, in_sequence=True)
    if model.output.unit <= model.accumulate.unit:
        return model
    fields: dict[str, Any] = {
        field: model.output for name, (value, field) in STORED.items() if semantics.get(name) == value
    }
    return replace(model, **fields) if fields else model


def _gradient_precision(implementation: Implementation, dtype: str, forward: Precision) -> Precision:
    """What is declared for gradients, else the output's."""
    declared = implementation.precision.get(f"{dtype}-gradients")
    return (
        declared
        if isinstance(declared, Precision)
        else Precision.named(declared, dtype)
        if declared
        else forward
    )


def _relaid(array: Any, layout: str | None) -> Any:
    return array if layout is None else LAYOUTS[layout](np.asarray(array))


def copied(view: np.ndarray) -> np.ndarray:
    """The same numbers in other memory, with the same strides; what lies around them comes along."""
    root = owner_of(view)
    if root is view or not view.size or not root.flags.c_contiguous:
        return np.array(view)
    offset = view.__array_interface__["data"][0] - root.__array_interface__["data"][0]
    return np.ndarray(view.shape, view.dtype, root.copy(), offset, view.strides)
