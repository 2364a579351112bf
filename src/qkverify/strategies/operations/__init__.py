"""The calls of each operation but attention, one file each, named after the operation: `SPEC` in it is all that is needed."""

from __future__ import annotations

from collections.abc import Mapping

from qkverify.contract.operations import in_each
from qkverify.strategies.operation_spec import OperationSpec

OPERATION_SPECS: Mapping[str, OperationSpec] = in_each(__name__, "SPEC")
