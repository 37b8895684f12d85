"""Rerankers by name, so that they can be compared: what `qrhead evaluate --methods` understands.

    random            a seeded shuffle
    bm25              BM25, its word statistics taken from the list
    embedding:FOLDER  cosine of sentence embeddings
    all               every head of the model (In-Context Re-ranking, Chen et al., arXiv 2410.02642)
    HEADS             `default`, the name of a shipped set, a file ending in .json, or pairs like 17-3,18-6
    module:function   any function of a query and a list of texts that returns a score for each

Heads may name a mode after an @, as in `default@listwise`; without one it is the mode in which they rank best.
"""

import importlib
import math
import random
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias, cast, get_args

from qrhead_rag.core.heads import Mode, parse_heads
from qrhead_rag.core.passage import Passage
from qrhead_rag.datasets.bm25 import BM25
from qrhead_rag.evaluate.embedding import EmbeddingModel
from qrhead_rag.extras import require_extra
from qrhead_rag.ranking.retriever import QRRetriever


class Ranked(NamedTuple):
    """What a method makes of one list.

    Attributes:
        order: indices of the documents, best first.
        scores: the score of each document, in the order of the list.
    """

    order: list[int]
    scores: list[float]


Method: TypeAlias = Callable[[str, Sequence[Passage]], Ranked]
"""Ranks the documents of a list for a query."""


def parse_methods(names: str) -> list[str]:
    """Names parted by commas; pairs that stand together are one head set.

    >>> parse_methods("bm25, default@late,17-3,18-6@late,all")
    ['bm25', 'default@late', '17-3,18-6@late', 'all']
    """
    return [found.strip() for found in _NAMES.findall(names) if found.strip()]


_PAIRS = r"\d+-\d+(?:,\d+-\d+)*"
_NAMES = re.compile(rf"\s*{_PAIRS}(?:@\w+)?\s*(?=,|$)|[^,]+")


def by_score(scores: Sequence[float], expected: int) -> Ranked:
    """Best first; equal scores keep the order of the list.

    Raises:
        ValueError: another number of scores than of documents, or one that is not finite.
    """
    if len(scores) != expected:
        raise ValueError(f"{len(scores)} scores for {expected} documents; expected one for each")
    found = [float(score) for score in scores]
    if odd := [score for score in found if not math.isfinite(score)]:
        raise ValueError(f"{len(odd)} of {expected} scores are not finite, {odd[0]} for one; expected numbers")
    return Ranked(sorted(range(expected), key=lambda index: -found[index]), found)


def make_method(
    name: str,
    *,
    load_retriever: Callable[[str | None, Mode | None], QRRetriever] | None = None,
    seed: int = 0,
) -> Method:
    """The method of a name.

    Args:
        name: see this module.
        load_retriever: from heads (None is the shipped default) and mode (None is the heads' own) to a retriever; the
            embedded model where None.
        seed: of `random`.

    Raises:
        ValueError: an unknown name or mode.
        ImportError: an extra, or the module of `module:function`, is not there.
    """
    kind, _, rest = name.partition(":")
    if name == "random":
        return _random(seed)
    if name == "bm25":
        require_extra("bm25s", "eval")
        return _bm25
    if kind == "embedding" and rest:
        return _from_scores(EmbeddingModel(rest).scores)
    heads, _, mode = name.partition("@")
    if rest and not heads.endswith(".json"):
        return _of_others(name)
    if mode and mode not in get_args(Mode):
        raise ValueError(f"mode {mode!r} of method {name!r} is unknown; expected one of {', '.join(get_args(Mode))}")
    load = load_retriever or _load_embedded
    return _from_retriever(load(None if heads == "default" else heads, cast("Mode | None", mode or None)))


def remembered(method: Method) -> Method:
    """The method, run once for each query and list, for rankings that are asked for again."""
    known: dict[tuple[str, tuple[str, ...]], Ranked] = {}

    def again(query: str, documents: Sequence[Passage]) -> Ranked:
        key = query, tuple(document.content for document in documents)
        if key not in known:
            known[key] = method(query, documents)
        return known[key]

    return again


def _load_embedded(heads: str | None, mode: Mode | None) -> QRRetriever:
    return QRRetriever.from_pretrained(heads=parse_heads(heads), mode=mode)


def _random(seed: int) -> Method:
    def method(query: str, documents: Sequence[Passage]) -> Ranked:
        draw = random.Random(f"{seed} {query}")
        return by_score([draw.random() for _ in documents], len(documents))

    return method


def _bm25(query: str, documents: Sequence[Passage]) -> Ranked:
    return by_score(BM25([document.content for document in documents]).scores(query), len(documents))


def _from_scores(score: Callable[[str, list[str]], Sequence[float]]) -> Method:
    def method(query: str, documents: Sequence[Passage]) -> Ranked:
        return by_score(score(query, [document.content for document in documents]), len(documents))

    return method


def _of_others(name: str) -> Method:
    function = find_function(name)

    def method(query: str, documents: Sequence[Passage]) -> Ranked:
        try:
            scores = function(query, [document.content for document in documents])
        except Exception as error:  # not of this package, so that its traceback is wanted, whatever its kind
            raise RuntimeError(f"{name} failed on {query!r}: {error}") from error
        try:
            return by_score(scores, len(documents))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}: {error}") from error

    return method


def _from_retriever(retriever: QRRetriever) -> Method:
    def method(query: str, documents: Sequence[Passage]) -> Ranked:
        ranking = retriever.rank(query, documents)
        scores = {ranked.index: ranked.score for ranked in ranking}
        return Ranked([ranked.index for ranked in ranking], [scores[index] for index in range(len(documents))])

    return method


def find_function(name: str) -> Callable[..., Any]:
    """The function that `module:function` names.

    Raises:
        ImportError: no such module.
        ValueError: no such function in it.
    """
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise ValueError(f"{name} is {found!r}; expected module:function")
    return cast("Callable[..., Any]", found)
