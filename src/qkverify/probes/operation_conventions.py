"""What another operation means by options that it is not given, and how it rounds."""

from __future__ import annotations

from functools import partial

from qkverify.contract import Implementation
from qkverify.contract.operations import DESCRIBED, word
from qkverify.probes import fast_exponential, operation_rounding
from qkverify.probes.attention_rounding import FUSED, speed_of_exponential
from qkverify.probes.choice import Choice
from qkverify.probes.layouts import layout
from qkverify.probes.norms import norms
from qkverify.probes.small_problems import answer
from qkverify.runs.accepted_heads import heads
from qkverify.runs.run import Run


def left_out(implementation: Implementation, run: Run) -> dict[str, Choice]:
    """What the function means by options that it is not given. Of one that it takes nothing is said if that is the usual."""
    if implementation.operation == "alibi_slopes":
        return {"heads": Choice(value, "detected")} if (value := answer(heads, run)) else {}
    described = DESCRIBED[implementation.operation]
    defaults = described.defaults
    if "layout" in defaults:
        value = answer(layout, run)
        values = {"layout": value} if value else {}
    else:
        values = (answer(norms, run) or {}) if defaults else {}
    return {
        name: Choice(value, "detected")
        for name, value in values.items()
        if (not run.offers_parameter(name) and name in described.options) or value != word(defaults[name][0])
    }


def rounding(implementation: Implementation, run: Run) -> dict[str, Choice]:
    """How another operation rounds, where that is not declared: of half precision and of angles in float64."""
    if run.dtype == "float64":
        has_angles = "layout" in DESCRIBED[implementation.operation].defaults
        narrow = answer(operation_rounding.angles, run) if has_angles else None
        return {"angles": Choice(narrow, "detected")} if narrow else {}
    if run.dtype == "float32" or implementation.declared_precision(run.device, run.dtype) is not None:
        return {}
    fast = implementation.operation in fast_exponential.OF and answer(speed_of_exponential, run) == "fast"
    fused = FUSED[fast]
    models = {"precision": answer(partial(operation_rounding.precision, fused=fused), run) or fused}
    if run.offers("gradients") and f"{run.dtype}-gradients" not in implementation.precision:
        # As of attention: where the result is rounded operation by operation, the gradients are.
        gradient_model = (
            answer(partial(operation_rounding.gradient_precision, fused=FUSED[0]), run)
            if models["precision"] in FUSED
            else None
        )
        models["gradient_precision"] = gradient_model or models["precision"]
    steps: dict[str, Choice] = {}
    if models.get("gradient_precision") == "eager" and "softmax_gradient" not in implementation.semantics:
        way = answer(operation_rounding.softmax_gradient, run)
        steps = {"softmax_gradient": Choice(way, "detected")} if way else {}
    # A fused kernel is the usual case, of which nothing is said.
    return steps | {
        name: Choice(value, "detected")
        for name, value in models.items()
        if set(models.values()) != {FUSED[0]}
    }
