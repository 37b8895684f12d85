"""What the readout `evidence` could be read from, tried on recorded attention: which rows, and beyond which prior.

    python -m benchmarks.readouts record EXAMPLES.jsonl --out FOLDER [--examples 50]
    python -m benchmarks.readouts compare FOLDER [FOLDER ...]

`record` runs every list once and keeps the attention of every head and row on each piece of a document, for `late` and
for `independent`. `compare` ranks the recorded lists with the default heads of each mode, each line reading other rows
or another prior: nDCG@10, and the paired difference to `evidence`. Use examples that chose neither heads nor readout.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qrhead_rag import LabelledExample, Passage, QRRetriever
from qrhead_rag.core.attention import Rows
from qrhead_rag.core.heads import Mode, find_shipped
from qrhead_rag.core.prompt import NULL_QUERY
from qrhead_rag.core.scoring import document_scores, pool_pieces
from qrhead_rag.datasets.load import load_examples, ordered, sample_examples
from qrhead_rag.evaluate.metrics import ndcg_of_scores, paired_test
from qrhead_rag.ranking.modes import MODES
from qrhead_rag.ranking.per_passage import PerPassage
from qrhead_rag.ranking.pieces import ListedPieces
from qrhead_rag.ranking.store import ListStore, store_of

READ_BY_MODE: tuple[Mode, ...] = ("late", "independent")


class Masses:
    """The attention of every head and row of one part on each piece of a list, and where its rows stand.

    Attributes:
        masses: m(r, piece). Shape: (heads, rows, pieces)
        query_start: the first row of the instruction.
        query_tokens: the query's own rows.
        piece_document: document of each piece. Shape: (pieces,)
    """

    def __init__(self, masses: Tensor, query_start: int, query_tokens: Sequence[int], piece_document: Tensor) -> None:
        self.masses, self.query_start = masses.float(), query_start
        self.query_tokens, self.piece_document = slice(*query_tokens), piece_document

    @property
    def span(self) -> Tensor:
        """Mean over the query span. Shape: (heads, pieces)"""
        return self.masses[:, self.query_start :].mean(dim=1)

    @property
    def instruction(self) -> Tensor:
        """Mean over the rows before the query. Shape: (heads, pieces)"""
        return self.masses[:, self.query_start : self.query_tokens.start].mean(dim=1)

    @property
    def own(self) -> Tensor:
        """The query's own rows. Shape: (heads, rows, pieces)"""
        return self.masses[:, self.query_tokens]


def evidence_of(rows: Tensor, prior: Tensor, masses: Masses, num_documents: int) -> Tensor:
    """Equations (5) and (6) of core/scoring.py on recorded masses. Shape: (documents,)"""
    gains = (rows - prior[:, None]).clamp(min=0).mean(dim=1)  # (heads, pieces)
    scores = pool_pieces(gains, masses.piece_document, num_documents)[0]  # (heads, documents)
    totals = scores.sum(dim=-1, keepdim=True)
    return (scores / totals.where(totals > 0, 1.0)).mean(dim=0)


Variant = Callable[[dict[str, Masses], int], Tensor]
VARIANTS: dict[str, Variant] = {
    "evidence: own rows beyond the instruction's": lambda parts, n: evidence_of(
        parts["query"].own, parts["query"].instruction, parts["query"], n
    ),
    "beyond the null query's whole span": lambda parts, n: evidence_of(
        parts["query"].own, parts["null"].span, parts["query"], n
    ),
    "beyond the null query's own rows": lambda parts, n: evidence_of(
        parts["query"].own, parts["null"].own.mean(dim=1), parts["query"], n
    ),
    "the query written twice, its second copy read": lambda parts, n: evidence_of(
        parts["twice"].own, parts["null"].span, parts["twice"], n
    ),
    "published, without its mask": lambda parts, n: pool_pieces(
        parts["query"].span - parts["null"].span, parts["query"].piece_document, n
    )[0].sum(dim=0),
}


def record(path: Path, folder: Path, count: int | None) -> None:
    base = QRRetriever.from_pretrained(heads="all", mode="independent", device="cpu", cache_bytes=2**32)
    folder.mkdir(parents=True, exist_ok=True)
    examples = [ordered(example, "shuffled") for example in sample_examples(load_examples(path), count=count)]
    for number, example in enumerate(examples):
        tensors: dict[str, Tensor] = {}
        for mode in READ_BY_MODE:
            tensors |= {f"{mode}.{name}": tensor for name, tensor in masses_of(base, mode, example).items()}
        save_file(tensors, folder / f"{number:04}.safetensors", {"example": example.model_dump_json()})
        print(f"{number + 1} of {len(examples)}", flush=True)


def masses_of(base: QRRetriever, mode: Mode, example: LabelledExample) -> dict[str, Tensor]:
    """m(r, piece) of the query, of the null query and of the query written twice."""
    retriever = QRRetriever(base.model, base.tokenizer, model_name=base.model_name, heads="all", mode=mode)
    store: ListStore = store_of(retriever)
    context, state = store.context, MODES[mode](store)
    assert isinstance(state, PerPassage)
    passages: list[Passage] = list(example.documents)
    state.set_passages(passages)
    state.run()
    listed = ListedPieces.of(state._contents, state._passages)
    position, template = state._query_position(listed), context.template
    opening = store.opening.cache().get_seq_length()
    twice = f"{example.query}{template.separator}Query: {example.query}"
    tensors = {"documents": listed.document_of_piece}
    for name, query in (("query", example.query), ("null", NULL_QUERY), ("twice", twice)):
        question = context.tokenizer.question(template, query)
        own = question.query_tokens
        if name == "twice":  # its second copy: as many tokens as the query has alone
            alone = context.tokenizer.question(template, example.query).query_tokens
            own = own._replace(start=own.end - (alone.end - alone.start))
        each_row = tuple(range(row, row + 1) for row in range(len(question.ids)))
        attention = state._attend([Rows(question.ids, position, each_row)], listed)[:, :, opening:]
        tensors[name] = document_scores(attention, listed.piece_of, len(listed.pieces)).half()
        tensors[f"{name}.rows"] = torch.tensor([question.query_start, own.start, own.end])
    return tensors


def compare(folders: Sequence[Path]) -> None:
    files = [file for folder in folders for file in sorted(folder.glob("*.safetensors"))]
    for mode in READ_BY_MODE:
        shipped = find_shipped("HuggingFaceTB/SmolLM2-135M-Instruct", mode)
        rows = [layer * shipped.num_heads + head for layer, head in shipped.heads]
        values: dict[str, list[float]] = {name: [] for name in VARIANTS}
        for file in files:
            tensors, example = load_file(file), example_of(file)
            parts = {}
            for name in ("query", "null", "twice"):
                start, *own = tensors[f"{mode}.{name}.rows"].tolist()
                parts[name] = Masses(tensors[f"{mode}.{name}"][rows], start, own, tensors[f"{mode}.documents"])
            for name, variant in VARIANTS.items():
                scores = variant(parts, len(example.documents))
                values[name].append(float(ndcg_of_scores(scores[None], example)))
        first = next(iter(VARIANTS))
        print(f"\n{mode}, {len(files)} lists, heads {shipped.name} ({len(rows)})\n{'':50} nDCG@10  difference")
        for name, measured in values.items():
            test = paired_test(measured, values[first])
            print(f"{name:50} {sum(measured) / len(measured):.3f}    {test.difference:+.3f}, p = {test.p_value:.3f}")


def example_of(file: Path) -> LabelledExample:
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    return LabelledExample.model_validate_json(header["__metadata__"]["example"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("path", type=Path)
    recording.add_argument("--out", type=Path, required=True)
    recording.add_argument("--examples", type=int)
    comparing = commands.add_parser("compare")
    comparing.add_argument("folders", type=Path, nargs="+")
    options = parser.parse_args()
    if options.command == "record":
        record(options.path, options.out, options.examples)
    else:
        compare(options.folders)


if __name__ == "__main__":
    main()
