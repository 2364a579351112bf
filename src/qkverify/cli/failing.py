"""How a command ends that cannot do what it was asked for."""

from __future__ import annotations

import sys
from typing import NoReturn


def fail(text: str, code: int) -> NoReturn:
    from qkverify.foreign_text import escaped

    print(f"qkverify: {escaped(text)}", file=sys.stderr)
    raise SystemExit(code)
