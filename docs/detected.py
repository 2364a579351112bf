"""The smallest planted error that each way of comparing sees: made of what `qkverify.benchmarks.detection` measured."""

from __future__ import annotations

import hashlib
import json

from block import ROOT, block

from qkverify.benchmarks.planted_errors import BACKWARD, FORWARD, MODELS
from qkverify.report.markdown import table

MEASURED = ROOT / "reports" / "detection.json"
JUDGES = ("qkverify", "assert_close", "2 x rule")
ERRORS = {
    "scale": "softmax scale",
    "normaliser": "row sums",
    "one weight": "one weight of each head",
    "tile": "weights of the last 16 keys",
    "far tile": "weights of keys 512 to 527",
    "gradients": "all gradients",
    "backward scale": "softmax scale, backward",
    "delta": "delta",
}
MODEL_NAMES = {"plain": "", "fused": ", fused", "eager": ", op by op"}
WORDS = {"objects to right code": "-", "not seen": "never"}


def measured_digest() -> str:
    return hashlib.sha256(MEASURED.read_bytes()).hexdigest()[:12] if MEASURED.is_file() else ""


def size(found: float | str) -> str:
    """In units roundoff, with two digits."""
    if isinstance(found, str):
        return WORDS[found]
    return f"{found:,.0f}" if found >= 10 else f"{found:.2g}"


@block("detection", measured_digest)
def _() -> str:
    rows = {(x["dtype"], x["model"], x["error"]): x for x in json.loads(MEASURED.read_text(encoding="utf-8"))}
    head = ["too large or too small", *(f"{dtype}{MODEL_NAMES[model]}" for dtype, model in MODELS)]
    lines = [
        [
            ERRORS[error],
            *(" / ".join(size(rows[*model, error][judge]) for judge in JUDGES) for model in MODELS),
        ]
        for error in (*FORWARD, *BACKWARD)
    ]
    return table(head, lines)
