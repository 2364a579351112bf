"""The arithmetic of error bounds. This room knows nothing of attention.

It uses NumPy alone. It hands out the floating-point formats (`formats`), how an implementation rounds (`precision`), and arrays
that carry a bound on their rounding error (`bounded`).
"""

from __future__ import annotations

from qkverify.rounding.bounded import Bounded as Bounded
from qkverify.rounding.bounded import Rule as Rule
from qkverify.rounding.formats import BFLOAT16 as BFLOAT16
from qkverify.rounding.formats import FLOAT16 as FLOAT16
from qkverify.rounding.formats import FLOAT32 as FLOAT32
from qkverify.rounding.formats import FLOAT64 as FLOAT64
from qkverify.rounding.formats import FORMATS as FORMATS
from qkverify.rounding.formats import TF32 as TF32
from qkverify.rounding.formats import Format as Format
from qkverify.rounding.precision import EXACT as EXACT
from qkverify.rounding.precision import FAST_EXP as FAST_EXP
from qkverify.rounding.precision import LN_2 as LN_2
from qkverify.rounding.precision import Array as Array
from qkverify.rounding.precision import Precision as Precision
from qkverify.rounding.precision import gamma as gamma
