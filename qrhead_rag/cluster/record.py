"""The scores of every head recorded on a pool of actors, for detection: `qrhead detect --ray`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qrhead_rag.cluster.pool import Pool, run
from qrhead_rag.core.heads import ModelShape
from qrhead_rag.core.passage import Passage
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
    """`record`, shared out to actors: the same files in the same folder; what it has already is not run again.

    Args:
        lists: examples by label, with their documents in the order they are to be run in.
        folder: one that every machine of the pool sees.
        pool: where; None is one actor on this machine.
        on_progress: called with the number done and the number in all.
        options: those of `QRRetriever.from_pretrained`, without heads.

    Raises:
        ValueError: no examples, or as `record`; OSError: as `from_pretrained`.
        RuntimeError: an actor failed, or two of them loaded other weights.
    """
    pool = pool or Pool()
    folder = Path(folder).absolute()
    examples = [example for found in lists.values() for example in found]
    if not examples:
        raise ValueError("found no examples; expected at least one to record")
    size = min(max(1, len(examples) // (_TASKS_PER_ACTOR * pool.concurrency[1])), _LARGEST)
    tasks = [
        {"start": start, "examples": [_read(example) for example in examples[start : start + size]]}
        for start in range(0, len(examples), size)
    ]
    files: dict[int, Path] = {}
    models = set()
    tell = on_progress or (lambda done, total: None)
    tell(0, len(examples))
    for said in run(pool, _Recorder, {"folder": str(folder), "options": options}, tasks):
        files |= {place: folder / name for place, name in enumerate(said["files"], start=said["start"])}
        models.add((said["model"], ModelShape(*said["shape"])))
        tell(len(files), len(examples))
    if len(models) != 1 or len(files) != len(examples):
        raise RuntimeError(
            f"{len(files)} of {len(examples)} examples were recorded, of the models {sorted(models)}; expected all, of "
            "one model: run the same again"
        )
    recordings, start = {}, 0
    for label, found in lists.items():
        recordings[label] = Recording(found, [files[place] for place in range(start, start + len(found))])
        start += len(found)
    return RecordedLists(recordings, *models.pop())


def _read(example: LabelledExample) -> dict[str, Any]:
    """What the model reads of an example, which is all that its file depends on."""
    documents = [[document.text, document.title] for document in example.documents]
    return {"query": example.query, "documents": documents, "id": example.id}


class _Recorder:
    """The work of an actor: records examples into the folder."""

    def __init__(self, folder: str, options: Mapping[str, Any]) -> None:
        self._folder = folder
        self._retriever = QRRetriever.from_pretrained(**{**options, "heads": "all", "cache_bytes": 0})

    def __call__(self, task: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        examples = [
            LabelledExample(
                query=found["query"],
                documents=tuple(Passage(text=text, title=title) for text, title in found["documents"]),
                relevant=(),
                id=found["id"],
            )
            for found in task["examples"]
        ]
        recording = record(self._retriever, examples, self._folder)
        yield {
            "start": task["start"],
            "files": [file.name for file in recording.files],
            "model": self._retriever.model_name,
            "shape": list(self._retriever.shape),
        }
