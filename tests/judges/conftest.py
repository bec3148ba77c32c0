"""The strategies of the records' tests and the tiny model that sees of the learner's are used here too."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("records", "learning")]
