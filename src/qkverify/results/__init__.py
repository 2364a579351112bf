"""The recorded form of a run, one JSON object a line, and the facts about the machine it took place on.

It hands out every record by name, `read` and `Writer` (`files`), what older files need (`migrations`), and the facts about a
machine (`fingerprint`).
"""

from __future__ import annotations

from qkverify.results.figure_records import Complexity as Complexity
from qkverify.results.figure_records import Picture as Picture
from qkverify.results.figure_records import PictureKind as PictureKind
from qkverify.results.figure_records import Rounding as Rounding
from qkverify.results.figure_records import Travel as Travel
from qkverify.results.files import Kind as Kind
from qkverify.results.files import Reading as Reading
from qkverify.results.files import Record as Record
from qkverify.results.files import ResultsError as ResultsError
from qkverify.results.files import Writer as Writer
from qkverify.results.files import finite as finite
from qkverify.results.files import json_schema as json_schema
from qkverify.results.files import line_of as line_of
from qkverify.results.files import of_kind as of_kind
from qkverify.results.files import read as read
from qkverify.results.files import verdict_of as verdict_of
from qkverify.results.run_records import SCHEMA as SCHEMA
from qkverify.results.run_records import Fact as Fact
from qkverify.results.run_records import Fingerprint as Fingerprint
from qkverify.results.run_records import RunStart as RunStart
from qkverify.results.timing_records import Accuracy as Accuracy
from qkverify.results.timing_records import Cache as Cache
from qkverify.results.timing_records import Ceiling as Ceiling
from qkverify.results.timing_records import Clock as Clock
from qkverify.results.timing_records import Conditions as Conditions
from qkverify.results.timing_records import Control as Control
from qkverify.results.timing_records import Direction as Direction
from qkverify.results.timing_records import Group as Group
from qkverify.results.timing_records import Mark as Mark
from qkverify.results.timing_records import OperationTiming as OperationTiming
from qkverify.results.timing_records import Scatter as Scatter
from qkverify.results.timing_records import Timing as Timing
from qkverify.results.timing_records import TimingSummary as TimingSummary
from qkverify.results.verdict_records import OUTCOMES_AGAINST as OUTCOMES_AGAINST
from qkverify.results.verdict_records import OUTCOMES_BROKEN as OUTCOMES_BROKEN
from qkverify.results.verdict_records import Counterexample as Counterexample
from qkverify.results.verdict_records import ImplementationInfo as ImplementationInfo
from qkverify.results.verdict_records import Kill as Kill
from qkverify.results.verdict_records import Message as Message
from qkverify.results.verdict_records import Outcome as Outcome
from qkverify.results.verdict_records import Planted as Planted
from qkverify.results.verdict_records import Semantic as Semantic
from qkverify.results.verdict_records import Tally as Tally
from qkverify.results.verdict_records import Tested as Tested
from qkverify.results.verdict_records import Verdict as Verdict
