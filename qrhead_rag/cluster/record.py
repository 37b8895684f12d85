"""The scores of every head recorded on a pool of actors, for detection: `qrhead detect --ray`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qrhead_rag.cluster.pool import Pool, run_tasks
from qrhead_rag.core.heads import ModelShape
from qrhead_rag.datasets.examples import LabelledExample
from qrhead_rag.detect.recording import Recording, record
from qrhead_rag.ranking.retriever import QRRetriever

_LARGEST = 8  # examples that an actor takes at a time
_TASKS_PER_ACTOR = 8


class RecordedLists(NamedTuple):
    """Recordings by label, of this model."""

    recordings: dict[str, Recording]
    model_name: str
    shape: ModelShape


def record_on_ray(
    lists: Mapping[str, Sequence[LabelledExample]],
    folder: str | Path,
    *,
    pool: Pool | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> RecordedLists:
    """`record` on several actors: the same files in the same folder; examples that it has already are not run again.

    Args:
        lists: examples by label, with their documents in the order they are to be run in.
        folder: one that every machine of the pool can access.
        pool: where; None is one actor on this machine.
        on_progress: called with the number done and the number in all.
        options: those of `QRRetriever.from_pretrained`, without heads.

    Raises:
        ValueError: no examples, or as `record`; OSError: as `from_pretrained`.
        RuntimeError: two actors loaded other weights.
    """
    pool = pool or Pool()
    folder = Path(folder).absolute()
    examples = [example for listed in lists.values() for example in listed]
    if not examples:
        raise ValueError("there are no examples; expected at least one to record")
    size = min(max(1, len(examples) // (_TASKS_PER_ACTOR * pool.concurrency[1])), _LARGEST)
    tasks = [
        {"start": start, "examples": [_model_input(example) for example in examples[start : start + size]]}
        for start in range(0, len(examples), size)
    ]
    files: dict[int, Path] = {}
    models = set()
    report_progress = on_progress or (lambda done, total: None)
    report_progress(0, len(examples))
    for report in run_tasks(pool, _Recorder, {"folder": str(folder), "options": options}, tasks):
        files |= {index: folder / name for index, name in enumerate(report["files"], start=report["start"])}
        models.add((report["model"], ModelShape(*report["shape"])))
        report_progress(len(files), len(examples))
    if len(models) != 1:
        raise RuntimeError(f"the actors loaded the models {sorted(models)}; expected one model: run the same again")
    recordings, start = {}, 0
    for label, listed in lists.items():
        recordings[label] = Recording(listed, [files[index] for index in range(start, start + len(listed))])
        start += len(listed)
    return RecordedLists(recordings, *models.pop())


def _model_input(example: LabelledExample) -> dict[str, Any]:
    """What the model reads of an example, which is all that its file depends on."""
    return example.model_dump(include={"query": True, "id": True, "documents": {"__all__": {"text", "title"}}})


class _Recorder:
    """The work of an actor: records examples into the folder."""

    def __init__(self, folder: str, options: Mapping[str, Any]) -> None:
        self._folder = folder
        self._retriever = QRRetriever.from_pretrained(**{**options, "heads": "all", "cache_bytes": 0})

    def __call__(self, task: Mapping[str, Any]) -> dict[str, Any]:
        examples = [LabelledExample(**fields, relevant=()) for fields in task["examples"]]
        recording = record(self._retriever, examples, self._folder)
        return {
            "start": task["start"],
            "files": [file.name for file in recording.files],
            "model": self._retriever.model_name,
            "shape": list(self._retriever.shape),
        }
