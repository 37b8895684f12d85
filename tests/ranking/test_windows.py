"""Lists longer than the context: how windows slide, and what a ranking by windows says of itself."""

import random
import warnings

import pytest
import torch

from qrhead_rag import Passage, QRRetriever
from qrhead_rag.ranking.context import ListTooLongError
from qrhead_rag.ranking.store import store_of
from qrhead_rag.ranking.windows import slide, window_size
from tests.helpers.modes import MODES, PER_PASSAGE_MODES
from tests.helpers.tiny import tiny_model, tiny_tokenizer
from tests.helpers.warned import warnings_of_call

HEADS = [(1, 0), (1, 3), (2, 1), (2, 2)]
QUERY = "Who counts the ships?"


def make(mode="listwise", **options):
    return QRRetriever(tiny_model(max_position_embeddings=4096), tiny_tokenizer(), heads=HEADS, mode=mode, **options)


def documents(number=12, seed=0):
    rng = random.Random(seed)
    words = ["the", "keeper", "counts", "ships", "that", "pass", "lighthouse", "of", "and", "none", "two", "three"]
    return [" ".join(rng.choices(words, k=12)) for _ in range(number)]


def windowed(retriever, query, docs, **options):
    """A ranking, with the one warning it must come with."""
    with pytest.warns(UserWarning, match="longer together than the model's context") as caught:
        ranking = retriever.rank(query, docs, **options)
    (warning,) = warnings_of_call(caught)
    assert warning.filename == __file__
    return ranking, str(warning.message)


@pytest.mark.parametrize("number", range(1, 30))
@pytest.mark.parametrize(("window", "stride"), [(2, 1), (4, 2), (5, 5), (7, 3), (40, 20)])
def test_a_perfect_window_brings_the_best_to_the_front(number, window, stride):
    """The best document climbs to the front, and every document is seen."""
    values = random.Random(number).sample(range(100), number)
    seen = set()

    def best_first(indices):
        seen.update(indices)
        assert len(indices) == min(window, number)
        return sorted(indices, key=lambda index: -values[index])

    order = slide(number, window, stride, best_first)
    assert sorted(order) == list(range(number)) == sorted(seen)
    if stride < window:
        assert order[0] == values.index(max(values))
    if window >= number:
        assert order == sorted(range(number), key=lambda index: -values[index])


def test_window_size():
    assert window_size([10, 30, 20], room=60, window=None) == 3
    assert window_size([10, 30, 20], room=59, window=None) == 2
    assert window_size([100, 100], room=10, window=None) == 2
    assert window_size([1, 1], room=10, window=7) == 7


def test_a_long_list_is_ranked_in_windows_with_one_warning():
    retriever, docs = make(context_length=300), documents()
    ranking, message = windowed(retriever, QUERY, docs)
    assert ranking.windowed
    assert ranking.truncated == ()
    assert sorted(ranked.index for ranked in ranking) == list(range(len(docs)))
    assert [ranked.passage.text for ranked in ranking] == [docs[ranked.index] for ranked in ranking]
    assert "12 documents" in message
    assert "300 tokens" in message
    assert "scores are those of each document's last window" in message


def test_a_list_that_fits_is_not_windowed():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not make(context_length=4096).rank(QUERY, documents()).windowed


@pytest.mark.parametrize("layout", ["given", "reversed"])
def test_order_and_scores_are_those_of_each_documents_last_window(layout):
    docs, window, stride = documents(12), 4, 2
    retriever = make(context_length=300, window=window, stride=stride, layout=layout)
    whole = make(layout=layout)
    last = {}

    def best_first(indices):
        scores = dict(zip(indices, whole.score(QUERY, [docs[index] for index in indices]), strict=True))
        last.update(scores)
        return sorted(indices, key=lambda index: -scores[index])

    order = slide(len(docs), window, stride, best_first)
    ranking, _ = windowed(retriever, QUERY, docs)
    assert [ranked.index for ranked in ranking] == order
    assert [ranked.score for ranked in ranking] == pytest.approx([last[index] for index in order], abs=1e-6)


def test_options_of_selection_follow_the_order_of_windows():
    retriever, docs = make(context_length=300), documents()
    whole, _ = windowed(retriever, QUERY, docs)
    order = [ranked.index for ranked in whole]
    top, _ = windowed(retriever, QUERY, docs, top_n=3)
    assert [ranked.index for ranked in top] == order[:3]
    original, _ = windowed(retriever, QUERY, docs, top_n=3, order="original")
    assert [ranked.index for ranked in original] == sorted(order[:3])
    budget, _ = windowed(retriever, QUERY, docs, max_tokens=2, token_counter=lambda text: 1)
    assert [ranked.index for ranked in budget] == order[:2]


def test_blank_documents_come_last_with_the_lowest_score():
    docs = ["", *documents(), " \n"]
    ranking, _ = windowed(make(context_length=300), QUERY, docs)
    assert [ranked.index for ranked in ranking][-2:] == [0, len(docs) - 1]
    lowest = min(ranked.score for ranked in ranking[:-2])
    assert [ranked.score for ranked in ranking[-2:]] == [lowest, lowest]


def test_a_document_longer_than_a_window_is_cut_for_scoring_and_returned_whole():
    long = Passage(text="the keeper counts the ships " * 60, id="long-one")
    docs = [*documents(6), long]
    retriever = make(context_length=300)
    with pytest.warns(UserWarning, match="only the beginning|sliding windows") as caught:
        ranking = retriever.rank(QUERY, docs)
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 2
    assert "6 (long-one)" in messages[0]
    assert "sliding windows" in messages[1]
    assert ranking.truncated == (6,)
    assert [ranked.truncated for ranked in ranking] == [ranked.index == 6 for ranked in ranking]
    assert next(ranked.passage for ranked in ranking if ranked.index == 6) is long


def test_score_and_encode_refuse_and_name_the_mode_independent():
    retriever, docs = make(context_length=300), documents()
    for refused in (lambda: retriever.score(QUERY, docs), lambda: retriever.encode(docs)):
        with pytest.raises(ListTooLongError, match=r"tokens long, the context of the model 300; .*'independent'"):
            refused()


def test_an_encoded_list_that_grows_too_long_stays_as_it_was():
    retriever, docs = make(context_length=300), documents()
    encoded = retriever.encode(docs[:2])
    before = encoded.score(QUERY)
    with pytest.raises(ListTooLongError):
        encoded.extend(docs[2:])
    assert len(encoded) == 2
    assert encoded.score(QUERY) == pytest.approx(before, abs=1e-6)


@pytest.mark.parametrize("mode", PER_PASSAGE_MODES)
def test_the_other_modes_know_no_limit_on_lists(mode):
    retriever, docs = make(mode, context_length=300), documents(40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ranking = retriever.rank(QUERY, docs)
        assert len(retriever.encode(docs)) == 40
    assert not ranking.windowed
    assert len(ranking) == 40


def test_explain_after_windows_sums_to_each_score():
    ranking, _ = windowed(make(context_length=300), QUERY, documents())
    for explained, ranked in zip(ranking.explain(), ranking, strict=True):
        assert sum(token.contribution for token in explained.tokens) == pytest.approx(ranked.score, abs=1e-5)


def test_a_list_that_fits_to_the_token_is_not_windowed():
    docs = documents()
    context = store_of(make()).context
    length = len(context.tokenizer.prompt(context.template, docs, QUERY).ids)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not make(context_length=length).rank(QUERY, docs).windowed
    assert windowed(make(context_length=length - 1), QUERY, docs)[0].windowed


def test_a_window_asked_for_that_does_not_fit_is_an_error_that_says_so():
    with pytest.raises(ListTooLongError, match="window=12"):
        make(context_length=300, window=12).rank(QUERY, documents(20))


@pytest.mark.parametrize("mode", MODES)
def test_a_query_longer_than_the_context(mode):
    retriever = make(mode, context_length=120)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for ask in (retriever.rank, retriever.score):
            with pytest.raises(ListTooLongError, match=r"the context of the model 120.* a shorter query"):
                ask("ships " * 200, documents(3))


def test_a_query_that_leaves_no_room_for_two_documents_is_said():
    retriever = QRRetriever(tiny_model(), tiny_tokenizer(), heads=HEADS)
    context = store_of(retriever).context
    around = len(context.tokenizer.prompt(context.template, [], "ship " * 20).ids)
    small = QRRetriever(retriever.model, retriever.tokenizer, heads=HEADS, context_length=around + 14)
    with pytest.raises(
        ValueError,
        match=r"2 shortest documents there could be is \d+ tokens long, the context of the model \d+; use a shorter query",
    ):
        small.rank("ship " * 20, ["A ship passed the lighthouse.", "The keeper slept.", "Fog came at noon."])


def test_what_is_not_finite_is_named_by_its_place_in_the_list():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    (token,) = tokenizer.encode("~", add_special_tokens=False)
    with torch.no_grad():
        model.model.embed_tokens.weight[token] = float("nan")
    docs = documents()
    docs[1] = f"{docs[1]} ~"
    with pytest.raises(FloatingPointError, match="head 0 to document 1 is not finite"):
        QRRetriever(model, tokenizer, heads=[(1, 0)], context_length=300).rank(QUERY, docs)
