"""What Hypothesis draws. Public: users write laws of their own with it.

This room may use `runs` and every room below it. It hands out `problems` (`attention_problems`), the calls of other operations
(`operation_cases`, with a file for each in `operations`), and sequences that lie after one another (`sequences`).
"""

from __future__ import annotations

from qkverify.strategies.attention_problems import ALL_HEADS as ALL_HEADS
from qkverify.strategies.attention_problems import ARRAYS as ARRAYS
from qkverify.strategies.attention_problems import COMPILED as COMPILED
from qkverify.strategies.attention_problems import COMPILED_SHORT as COMPILED_SHORT
from qkverify.strategies.attention_problems import FEW_HEADS as FEW_HEADS
from qkverify.strategies.attention_problems import HEAD_SIZE_PAIRS as HEAD_SIZE_PAIRS
from qkverify.strategies.attention_problems import HEAD_SIZES as HEAD_SIZES
from qkverify.strategies.attention_problems import HEADS as HEADS
from qkverify.strategies.attention_problems import LARGE as LARGE
from qkverify.strategies.attention_problems import LENGTHS as LENGTHS
from qkverify.strategies.attention_problems import MANY as MANY
from qkverify.strategies.attention_problems import MASK_GAPS as MASK_GAPS
from qkverify.strategies.attention_problems import NARROW as NARROW
from qkverify.strategies.attention_problems import OPTION_DRAWS as OPTION_DRAWS
from qkverify.strategies.attention_problems import PAIRED as PAIRED
from qkverify.strategies.attention_problems import PAIRS as PAIRS
from qkverify.strategies.attention_problems import PLACED as PLACED
from qkverify.strategies.attention_problems import PLACES as PLACES
from qkverify.strategies.attention_problems import REAL_LENGTHS as REAL_LENGTHS
from qkverify.strategies.attention_problems import SCALES as SCALES
from qkverify.strategies.attention_problems import SIDES as SIDES
from qkverify.strategies.attention_problems import SINKS as SINKS
from qkverify.strategies.attention_problems import SLOPES as SLOPES
from qkverify.strategies.attention_problems import SMALL as SMALL
from qkverify.strategies.attention_problems import SMALL_HEAD_SIZE_PAIRS as SMALL_HEAD_SIZE_PAIRS
from qkverify.strategies.attention_problems import SOFTCAPS as SOFTCAPS
from qkverify.strategies.attention_problems import STRETCHED as STRETCHED
from qkverify.strategies.attention_problems import STRIDED as STRIDED
from qkverify.strategies.attention_problems import TAME as TAME
from qkverify.strategies.attention_problems import TAME_MIXTURES as TAME_MIXTURES
from qkverify.strategies.attention_problems import TILE_EDGES as TILE_EDGES
from qkverify.strategies.attention_problems import USUAL as USUAL
from qkverify.strategies.attention_problems import USUAL_SIZES as USUAL_SIZES
from qkverify.strategies.attention_problems import WILD_MIXTURES as WILD_MIXTURES
from qkverify.strategies.attention_problems import draw_options as draw_options
from qkverify.strategies.attention_problems import draw_sizes as draw_sizes
from qkverify.strategies.attention_problems import first_key_alone as first_key_alone
from qkverify.strategies.attention_problems import problems as problems
from qkverify.strategies.attention_problems import real_problems as real_problems
