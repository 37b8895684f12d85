"""The modes, for tests that hold in each of them: a mode that is added is tested with the others."""

from typing import get_args

from qrhead_rag.core.heads import Mode
from qrhead_rag.ranking import modes
from qrhead_rag.ranking.per_passage import PerPassage

MODES: tuple[Mode, ...] = get_args(Mode)
PER_PASSAGE_MODES: tuple[Mode, ...] = tuple(
    mode for mode, state in modes.MODES.items() if issubclass(state, PerPassage)
)
