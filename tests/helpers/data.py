"""Public data sets for measuring, which are no part of the project: tests that read them skip where they are absent."""

import os
from pathlib import Path

from tests.helpers.alone import ROOT

DATA = Path(os.environ.get("QRHEAD_DATA") or ROOT.parent / "shared" / "data")
HOTPOTQA = DATA / "hotpotqa" / "hotpotqa_100.json"
