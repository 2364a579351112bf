"""What a target shows of itself before any law is checked.

`fitted(implementation)` calls it with plain problems and gives it back with what was inferred: the framework, layout and part
of its result, what switches an option off, the sizes and dtypes that it does not take. `Implementation.remarks` says each of
these in one sentence. What cannot be called at all raises `UsageError` with a sentence and a remedy: the laws would say the
same a hundred times.

Nothing that is declared is second-guessed: an `@implementation` gets one plain call. A limit is inferred only where the function
*raises*; a wrong result is left to the laws. What is found depends on the function alone, so every process finds the same.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qkverify.contract import (
    ATTENTIONS,
    Implementation,
    fixed_parameters,
    frameworks,
    messages,
    process_settings,
    registry,
)
from qkverify.contract.modules import ModuleTarget
from qkverify.probes import (
    float32_inside,
    losses,
    modules,
    other_computation,
    row_axes,
    smoke,
    survival,
    tables,
)
from qkverify.probes.cut_off import without_gradients
from qkverify.probes.defaults import switched_off
from qkverify.probes.dtypes import of_result

__all__ = ["again", "find", "fitted"]


def find(target: Any) -> list[Implementation]:
    """The implementations that a target means, as `registry.find`, fitted. Raises UsageError."""
    return [fitted(implementation) for implementation in registry.find(target)]


def reload_implementation(name: str, file: str, function: str, said: str = "") -> Implementation:
    """As `registry.reload_implementation`, fitted: the same in another process."""
    return fitted(registry.reload_implementation(name, file, function, said))


@messages.collected()
def fitted(implementation: Implementation) -> Implementation:
    """With what its plain calls show. Raises UsageError if it cannot be called."""
    if implementation.probed:
        return implementation
    with process_settings.noted_of(implementation.name):
        return _fitted(implementation)


def _fitted(implementation: Implementation) -> Implementation:
    if isinstance(implementation.function, ModuleTarget):
        return replace(fitted(modules.resolved(implementation)), adapters=implementation.adapters)
    missing = frameworks.missing(implementation.arrays)
    if implementation.operation != "attention":
        serves = implementation.operation in ATTENTIONS and not implementation.declared
        described = switched_off(implementation) if serves else implementation
        described = replace(
            described,
            remarks=(*described.remarks, *fixed_parameters.remarks(described.constants, described.operation)),
        )
        if not missing:
            described = other_computation.refused(tables.found(described))
            described = float32_inside.found(row_axes.found(losses.found(described)))
        return described if missing else replace(of_result(described), probed=True)
    module = str(getattr(implementation.function, "__module__", ""))
    if implementation.declared and (missing or module.startswith(registry.FOLDER)):
        return implementation  # it cannot run here, or is verified here already
    if death := survival.death_of(lambda: smoke.first_call(implementation)):
        return smoke.unavailable(implementation, f"its process {death} {survival.FIRST_CALL}")
    described = smoke.checked(implementation) if implementation.declared else smoke.inferred(implementation)
    return replace(without_gradients(described), probed=True)
