"""What is said of softmax."""

from __future__ import annotations

from qkverify.contract.operation import Operation

ORDER = 20
OPERATION = Operation("softmax over the last axis", {"scores": "(..., n)"}, "(..., n)")  # fmt: skip
