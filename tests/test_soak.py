"""Mixed use for a long time: eight threads, every mode, lists that come and go, caches that overflow.

Scores stay those of a serial run, and memory stays flat. The ordinary suite runs some hundred uses, `make soak` ten
minutes of them, or as many seconds as QRHEAD_SOAK_SECONDS in the environment says.
"""

import gc
import os
import random
import statistics
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from qrhead_rag import Passage, QRRetriever
from qrhead_rag.ranking.encoded import EncodedPassages
from qrhead_rag.ranking.store import store_of
from tests.helpers.modes import MODES
from tests.helpers.tiny import tiny_model, tiny_tokenizer

THREADS = 8
GROWTH = 1.03
HEADS = [(1, 0), (1, 3), (2, 1), (2, 2)]
WORDS = ["the", "keeper", "counts", "ships", "that", "pass", "lighthouse", "of", "none", "two", "fog", "bell", "night"]
QUERIES = ["Who counts the ships?", "Where is the bell?", "What of the fog, <|im_end|> and the night?"]


def make_lists(number, most):
    """Lists of many lengths, that share passages, with blanks and a long document among them."""
    rng = random.Random(0)
    pool = [" ".join(rng.choices(WORDS, k=rng.randint(2, 24))) for _ in range(40)] + ["", "ships " * 100]
    return [
        [Passage(text=rng.choice(pool), id=f"{which}-{index}") for index in range(rng.randint(1, most))]
        for which in range(number)
    ]


class Use:
    """One way of using a retriever after another, each held to what a serial run gave.

    Args:
        retriever: shared by all threads.
        lists: the lists it is asked about.
        folder: where lists are saved.
        expected: what `serial` gave for the same lists on an equal model.
        tolerance: how far scores may lie apart. Passages that run beside others differ in the last bits, and where keys
            are kept in float16 a last bit may round either way.
    """

    def __init__(self, retriever, lists, folder, expected=None, tolerance=1e-5):
        self.retriever, self.lists, self.folder, self.tolerance = retriever, lists, folder, tolerance
        self.expected = self.serial() if expected is None else expected
        self.ways = [self.rank, self.rank, self.score, self.encode, self.change]
        self.ways += [self.save] if retriever.mode == "late" else []

    def serial(self):
        """For each list and query, the scores, and whether an encoded list has the same ones."""
        retriever, scores_of = self.retriever, {}
        # A retriever that remembers nothing, on the same model and so under the same lock.
        options = retriever.options.model_dump() | {"cache_bytes": 0}
        serial = QRRetriever(
            retriever.model,
            retriever.tokenizer,
            model_name=retriever.model_name,
            heads=retriever.heads.heads,
            mode=retriever.mode,
            **options,
        )
        for which, passages in enumerate(self.lists):
            for query in QUERIES:
                ranking = serial.rank(query, passages)
                # Encoded lists know no query yet: they are cut elsewhere, and never read in windows.
                encodable = not (ranking.windowed or ranking.truncated)
                scores_of[which, query] = {ranked.index: ranked.score for ranked in ranking}, encodable
        return scores_of

    def some(self, rng):
        which = rng.randrange(len(self.lists))
        return which, self.lists[which], rng.choice(QUERIES)

    def check(self, which, query, scores):
        expected, _ = self.expected[which, query]
        assert scores == pytest.approx([expected[index] for index in range(len(expected))], abs=self.tolerance)

    def rank(self, rng):
        which, passages, query = self.some(rng)
        ranking = self.retriever.rank(query, passages, order="original")
        self.check(which, query, [ranked.score for ranked in ranking])
        for ranked, explained in zip(ranking, ranking.explain(), strict=True):
            if explained.tokens:
                assert sum(token.contribution for token in explained.tokens) == pytest.approx(ranked.score, abs=1e-4)

    def score(self, rng):
        which, passages, query = self.some(rng)
        if self.expected[which, query][1]:
            self.check(which, query, self.retriever.score(query, passages))

    def encode(self, rng):
        which, passages, _ = self.some(rng)
        if not all(self.expected[which, query][1] for query in QUERIES):
            return
        rankings = self.retriever.encode(passages).rank_queries(QUERIES, order="original")
        for query, ranking in zip(QUERIES, rankings, strict=True):
            self.check(which, query, [ranked.score for ranked in ranking])

    def change(self, rng):
        """A list that grows and shrinks to what it was."""
        which, passages, query = self.some(rng)
        if not self.expected[which, query][1]:
            return
        cut = rng.randint(0, len(passages))
        encoded = self.retriever.encode(passages[:cut])
        encoded.score(query)
        encoded.extend(passages[cut:])
        encoded.remove(rng.randrange(len(passages)))
        encoded.score(query)
        while len(encoded):
            encoded.remove(0)
        encoded.extend(passages)
        self.check(which, query, encoded.score(query))

    def save(self, rng):
        which, passages, query = self.some(rng)
        path = self.folder / f"{threading.get_ident()}.safetensors"
        self.retriever.encode(passages).save(path)
        self.check(which, query, EncodedPassages.load(path, self.retriever).score(query))


def run(uses, goes_on):
    """Use them from eight threads while `goes_on(uses done by the thread)`; gives the number of all uses."""
    failed = threading.Event()

    def work(number):
        rng, done = random.Random(number), 0
        while goes_on(done) and not failed.is_set():
            use = rng.choice(uses)
            try:
                rng.choice(use.ways)(rng)
            except BaseException:
                failed.set()
                raise
            done += 1
        return done

    with ThreadPoolExecutor(THREADS) as pool:
        done = sum(pool.map(work, range(THREADS)))
    for use in uses:
        cache = store_of(use.retriever).cache
        assert cache.nbytes == sum(size for _, size in cache._entries.values()) <= use.retriever.options.cache_bytes
    return done


def tiny_uses(lists, folder):
    """Each mode twice: with a cache that overflows all the time, and with none."""
    made = []
    for mode in MODES:
        options = {"heads": HEADS, "mode": mode, "context_length": 500, "piece_tokens": 64}
        models = [tiny_model(max_position_embeddings=1024) for _ in range(2)]
        first = Use(QRRetriever(models[0], tiny_tokenizer(), cache_bytes=300_000, **options), lists, folder)
        second = QRRetriever(models[1], tiny_tokenizer(), cache_bytes=0, **options)
        made += [first, Use(second, lists, folder, first.expected)]
    return made


@pytest.fixture(autouse=True)
def _windows_are_expected():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


@pytest.mark.slow
def test_some_mixed_use(tmp_path):
    assert run(tiny_uses(make_lists(6, most=8), tmp_path), lambda done: done < 8) == 8 * THREADS


@pytest.mark.soak
def test_ten_minutes_of_mixed_use(embedded_all, tmp_path):
    """With the embedded model among them, whose modes share one model and its lock."""
    seconds = float(os.environ.get("QRHEAD_SOAK_SECONDS", "600"))
    uses, lists = tiny_uses(make_lists(20, most=14), tmp_path), make_lists(6, most=6)
    for mode in MODES:
        retriever = QRRetriever(
            embedded_all.model,
            embedded_all.tokenizer,
            model_name=embedded_all.model_name,
            mode=mode,
            cache_bytes=20_000_000,
        )
        uses.append(Use(retriever, lists, tmp_path, tolerance=1e-4))
    gc.collect()
    memory, start = [], time.monotonic()

    def goes_on(done):
        memory.append((time.monotonic() - start, psutil.Process().memory_info().rss))
        return memory[-1][0] < seconds

    done = run(uses, goes_on)
    # What is loaded and grown once belongs to the first fifth.
    early = statistics.median(size for when, size in memory if seconds / 5 <= when < 2 * seconds / 5)
    late = statistics.median(size for when, size in memory if when >= 4 * seconds / 5)
    megabytes = f"{early / 2**20:.1f} MB in the second fifth, {late / 2**20:.1f} MB in the last"
    print(f"\n{done} uses in {seconds:.0f} s, {THREADS} threads; {megabytes}: {late / early:.4f} times")
    assert late < GROWTH * early
