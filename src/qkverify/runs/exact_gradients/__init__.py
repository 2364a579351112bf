"""What is exact of the gradients of operations that are one formula, under the precision of a run's gradients.

One file each, named after the operation: `gradients(run, upstream, *arguments, **options)` in it gives them by argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from qkverify.contract.operations import in_each
from qkverify.rounding import Bounded

OF: Mapping[str, Callable[..., Mapping[str, Bounded]]] = in_each(__name__, "gradients")
