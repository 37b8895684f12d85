"""Rerankers by name, so that they can be compared: what `qrhead evaluate --methods` understands.

    random            a seeded shuffle
    bm25              BM25, its word statistics taken from the list
    embedding:FOLDER  cosine of sentence embeddings
    all               every head of the model (In-Context Re-ranking, Chen et al., arXiv 2410.02642)
    HEADS             `default`, the name of a shipped set, a file ending in .json, or pairs like 17-3,18-6
    module:function   any function of a query and a list of texts that returns a score for each
    HEADS+W*FIRST     the order of heads fused with that of bm25 or embedding:FOLDER, which weighs W (`fuse_ranks`);
                      HEADS+FIRST is 1*FIRST

Heads may name a mode and a readout, each after an @, as in `default@listwise@published`; the default is the head set's
own.
"""

import importlib
import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, cast, get_args

from qrhead_rag.core.heads import Mode, Readout, parse_heads
from qrhead_rag.core.passage import Passage
from qrhead_rag.core.selection import fuse_ranks
from qrhead_rag.datasets.bm25 import BM25
from qrhead_rag.evaluate.embedding import EmbeddingModel
from qrhead_rag.extras import require_extra
from qrhead_rag.ranking.retriever import QRRetriever


class Ranked(NamedTuple):
    """A method's ranking of one list; `by_score` makes one.

    Attributes:
        order: indices of the documents, best first.
        scores: the score of each document, in the order of the list.
        unscored: whether every score is 0, of a fused method every score of its first stage.

    >>> by_score([0.1, 0.7, 0.7], 3).order
    [1, 2, 0]
    """

    order: list[int]
    scores: list[float]
    unscored: bool = False


MODES: tuple[Mode, ...] = get_args(Mode)
READOUTS: tuple[Readout, ...] = get_args(Readout)

Method: TypeAlias = Callable[[str, Sequence[Passage]], Ranked]
"""Ranks the documents of a list for a query."""


def parse_methods(names: str) -> list[str]:
    """Comma-separated names; adjacent layer-head pairs are one head set.

    >>> parse_methods("bm25, default@late,17-3,18-6@late,all")
    ['bm25', 'default@late', '17-3,18-6@late', 'all']
    """
    return [name.strip() for name in _NAMES.findall(names) if name.strip()]


_PAIRS = r"\d+-\d+(?:,\d+-\d+)*"
_NAMES = re.compile(rf"\s*{_PAIRS}(?:@\w+){{0,2}}\s*(?=,|$)|[^,]+")


def by_score(scores: Sequence[float], expected: int) -> Ranked:
    """Best first; equal scores keep the order of the list.

    Raises:
        ValueError: another number of scores than of documents, or one that is not finite.
    """
    if len(scores) != expected:
        raise ValueError(f"{len(scores)} scores for {expected} documents; expected one for each")
    numbers = [float(score) for score in scores]
    if bad := [score for score in numbers if not math.isfinite(score)]:
        raise ValueError(f"{len(bad)} of {expected} scores are not finite, for instance {bad[0]}; expected numbers")
    return Ranked(sorted(range(expected), key=lambda index: -numbers[index]), numbers, unscored=not any(numbers))


def make_methods(
    names: Sequence[str],
    *,
    load_retriever: Callable[[str | None, Mode | None, Readout | None], QRRetriever] | None = None,
    seed: int = 0,
) -> dict[str, Method]:
    """The methods that some names stand for, each with a cache; a fused one shares the rankings of its parts.

    Args:
        names: see this module.
        load_retriever: as in `make_method`.
        seed: of `random`.

    Raises:
        ValueError, ImportError: as `make_method`.
    """
    fusions = {name: fusion for name in names if (fusion := parse_fusion(name))}
    parts = dict.fromkeys([name for name in names if name not in fusions])
    parts |= dict.fromkeys(part for fusion in fusions.values() for part in (fusion.heads, fusion.first_stage))
    methods = {part: cached_method(make_method(part, load_retriever=load_retriever, seed=seed)) for part in parts}
    return {name: _fused(fusions[name], methods) if name in fusions else methods[name] for name in names}


class Fusion(NamedTuple):
    """Two methods whose orders are fused, and the weight of the second."""

    heads: str
    weight: float
    first_stage: str


def parse_fusion(name: str) -> Fusion | None:
    """The fusion that a name stands for; None for a name that is none.

    >>> parse_fusion("default@late+0.5*bm25")
    Fusion(heads='default@late', weight=0.5, first_stage='bm25')
    """
    parts = re.fullmatch(r"(.+)\+(?:(\d*\.?\d+)\*)?(bm25|embedding:.+)", name)
    return Fusion(parts[1], float(parts[2] or 1), parts[3]) if parts else None


def make_method(
    name: str,
    *,
    load_retriever: Callable[[str | None, Mode | None, Readout | None], QRRetriever] | None = None,
    seed: int = 0,
) -> Method:
    """The method that a name stands for.

    Args:
        name: see this module.
        load_retriever: from heads (None is the shipped default), mode and readout (None is the heads' own) to a
            retriever; the embedded model where None.
        seed: of `random`.

    Raises:
        ValueError: an unknown name, mode or readout.
        ImportError: an extra, or the module of `module:function`, is not installed.
    """
    kind, _, rest = name.partition(":")
    if parse_fusion(name):
        return make_methods([name], load_retriever=load_retriever, seed=seed)[name]
    if name == "random":
        return _random(seed)
    if name == "bm25":
        require_extra("bm25s", "eval")
        return _bm25
    if kind == "embedding" and rest:
        return _from_scores(EmbeddingModel(rest).scores)
    if not reads_heads(name):
        return _from_function(name)
    return _from_retriever(retriever_of(name, load_retriever or _load_embedded))


def reads_heads(name: str) -> bool:
    """Whether a method reads heads, and nothing besides.

    >>> [name for name in ("bm25", "all", "17-3,18-6@late", "default+bm25", "module:score") if reads_heads(name)]
    ['all', '17-3,18-6@late']
    """
    heads = name.partition("@")[0]
    return (
        name not in ("random", "bm25")
        and not parse_fusion(name)
        and (not name.partition(":")[2] or heads.endswith(".json"))
    )


def retriever_of(
    name: str, load_retriever: Callable[[str | None, Mode | None, Readout | None], QRRetriever]
) -> QRRetriever:
    """The retriever of a method that reads heads.

    Args:
        name: see this module.
        load_retriever: as in `make_method`.

    Raises:
        ValueError: an unknown name, mode or readout.
    """
    heads, *choices = name.split("@")
    mode: Mode | None = next((mode for mode in MODES if mode in choices), None)
    readout: Readout | None = next((readout for readout in READOUTS if readout in choices), None)
    if sorted(choices) != sorted(choice for choice in (mode, readout) if choice):
        raise ValueError(
            f"method {name!r}: {' and '.join(map(repr, choices))} after @; expected at most one mode "
            f"({', '.join(MODES)}) and one readout ({', '.join(READOUTS)})"
        )
    return load_retriever(None if heads == "default" else heads, mode, readout)


def cached_method(method: Method) -> Method:
    """The method with a cache of its rankings by query and list."""
    cache: dict[tuple[str, tuple[str, ...]], Ranked] = {}

    def cached(query: str, documents: Sequence[Passage]) -> Ranked:
        key = query, tuple(document.content for document in documents)
        if key not in cache:
            cache[key] = method(query, documents)
        return cache[key]

    return cached


def _load_embedded(heads: str | None, mode: Mode | None, readout: Readout | None) -> QRRetriever:
    return QRRetriever.from_pretrained(heads=parse_heads(heads), mode=mode, readout=readout)


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


def _from_function(name: str) -> Method:
    function = import_function(name)

    def method(query: str, documents: Sequence[Passage]) -> Ranked:
        try:
            scores = function(query, [document.content for document in documents])
        except Exception as error:  # foreign code may raise anything, and its traceback is needed
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


def _fused(fusion: Fusion, methods: Mapping[str, Method]) -> Method:
    reranker, first_stage = methods[fusion.heads], methods[fusion.first_stage]

    def method(query: str, documents: Sequence[Passage]) -> Ranked:
        reranked, first = reranker(query, documents), first_stage(query, documents)
        if first.unscored:  # its order is that of the list
            return reranked._replace(unscored=True)
        fused = fuse_ranks(reranked.order, first.scores, fusion.weight)
        return Ranked(sorted(fused, key=lambda index: -fused[index]), [fused[index] for index in range(len(documents))])

    return method


def import_function(name: str) -> Callable[..., Any]:
    """The function that `module:function` names.

    Raises:
        ImportError: no such module.
        ValueError: no such function in it.
    """
    module, _, path = name.partition(":")
    value: Any = importlib.import_module(module)
    for part in path.split("."):
        value = getattr(value, part, None)
    if not callable(value):
        raise ValueError(f"{name} is {value!r}; expected module:function")
    return cast("Callable[..., Any]", value)
