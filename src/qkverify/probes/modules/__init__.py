"""What a module target shows when it is built and called: `resolved` gives the implementation of an operation that it is."""

from __future__ import annotations

from qkverify.contract import Implementation
from qkverify.contract.modules.target import ModuleTarget


def resolved(implementation: Implementation) -> Implementation:
    """The implementation whose function is a `ModuleTarget`, with what its calls show. Raises UsageError."""
    from qkverify.probes.modules import kinds  # it needs torch, which a module's file has imported

    target = implementation.function
    assert isinstance(target, ModuleTarget)
    return kinds.settled(implementation, target)
