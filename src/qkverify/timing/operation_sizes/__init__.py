"""The sizes at which operations other than attention are timed: two for each, a short one and a long one, `CASES` in its file.

They are those of models that people run: the width, heads and vocabulary of the transformer (base) of "Attention Is All You Need"
(arXiv:1706.03762, table 3), the heads of Llama 3 8B (arXiv:2407.21783, table 3) where operations belong to models of today.
"""

from __future__ import annotations

from collections.abc import Mapping

from qkverify.contract.operations import in_each
from qkverify.timing.operation_case import OperationCase

OPERATION_CASES: Mapping[str, list[OperationCase]] = in_each(__name__, "CASES")
