"""QRRetriever: every kind of bad input in every mode, selection, shared models, batches, and what may never change."""

import copy
import random
import threading
import warnings
from collections import UserList

import numpy
import pytest
import torch
from pydantic import ValidationError

from qrhead_rag import HeadSet, Passage, QRRetriever
from qrhead_rag.ranking.store import store_of
from tests.core.test_attention import snapshot
from tests.helpers.modes import MODES, PER_PASSAGE_MODES
from tests.helpers.tiny import tiny_model, tiny_tokenizer
from tests.helpers.warned import warnings_of_call

HEADS = [(1, 0), (1, 3), (2, 1), (2, 2)]
QUERY = "Who counts the ships?"
DOCUMENTS = [
    "The keeper of the lighthouse counts the ships that pass.",
    "Bread is baked at dawn.",
    Passage(text="Nobody knows who counts them.", title="Ships", id="p-2", metadata={"page": 3}),
    {"text": "The harbour freezes for two months.", "title": "Harbour", "id": "h"},
    "Nothing passes here at night, and nothing is counted.",
]

every_mode = pytest.mark.parametrize("mode", MODES)


@pytest.fixture(scope="module")
def model():
    return tiny_model(max_position_embeddings=16384)


def make(model, mode="listwise", heads=HEADS, **options):
    return QRRetriever(model, tiny_tokenizer(), heads=heads, mode=mode, **options)


@pytest.fixture(autouse=True)
def _no_unexpected_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def indices(ranking):
    return [ranked.index for ranked in ranking]


# What a ranking is.


@every_mode
def test_rank_is_score_in_order(model, mode):
    retriever = make(model, mode)
    scores, ranking = retriever.score(QUERY, DOCUMENTS), retriever.rank(QUERY, DOCUMENTS)
    assert all(type(score) is float for score in scores)
    assert len(set(scores)) == len(DOCUMENTS)
    assert indices(ranking) == sorted(range(len(scores)), key=lambda index: -scores[index])
    # The first reading of a list asks the null query in the same pass, later ones do not: sums may round otherwise.
    assert [ranked.score for ranked in ranking] == pytest.approx(
        [scores[index] for index in indices(ranking)], abs=1e-6
    )
    assert (ranking.query, ranking.mode, ranking.windowed, ranking.truncated) == (QUERY, mode, False, ())
    by_index = {ranked.index: ranked.passage for ranked in ranking}
    assert by_index[2] is DOCUMENTS[2]
    assert by_index[3] == Passage(**DOCUMENTS[3])
    assert by_index[0] == Passage(text=DOCUMENTS[0])


@every_mode
def test_selected_heads_are_summed_before_the_mask_and_head_scores_after(model, mode):
    retriever = make(model, mode)
    alone = torch.stack([torch.tensor(make(model, mode, [head]).score(QUERY, DOCUMENTS)) for head in HEADS])
    torch.testing.assert_close(retriever.head_scores(QUERY, DOCUMENTS), alone, atol=1e-6, rtol=0)


@every_mode
def test_all_heads_are_every_head_in_order(model, mode):
    everything = make(model, mode, "all").head_scores(QUERY, DOCUMENTS)
    assert everything.shape == (16, len(DOCUMENTS))
    some = make(model, mode).head_scores(QUERY, DOCUMENTS)
    torch.testing.assert_close(everything[[layer * 4 + head for layer, head in HEADS]], some, atol=1e-5, rtol=0)


@every_mode
@pytest.mark.slow
def test_a_warm_retriever_answers_like_a_cold_one(model, mode):
    warm, cold = make(model, mode), make(model, mode, cache_bytes=0)
    for query in (QUERY, "What is baked?", QUERY, "ships " * 9):
        for documents in (DOCUMENTS, DOCUMENTS[:3], list(reversed(DOCUMENTS))):
            assert warm.score(query, documents) == pytest.approx(cold.score(query, documents), abs=1e-5)
    assert store_of(cold).cache.nbytes == 0
    assert store_of(warm).cache.nbytes > 0


@pytest.mark.parametrize("mode", PER_PASSAGE_MODES)
def test_order_of_the_list_cannot_matter(model, mode):
    retriever = make(model, mode)
    scores = retriever.score(QUERY, DOCUMENTS)
    for seed in range(3):
        order = random.Random(seed).sample(range(5), 5)
        shuffled = retriever.score(QUERY, [DOCUMENTS[index] for index in order])
        assert shuffled == pytest.approx([scores[index] for index in order], abs=1e-6)


def test_layout_reversed_lays_the_list_in_the_other_way_round(model):
    scores = make(model, layout="reversed").score(QUERY, DOCUMENTS)
    wanted = make(model).score(QUERY, DOCUMENTS[::-1])[::-1]
    assert scores == pytest.approx(wanted, abs=1e-6)
    assert scores != pytest.approx(make(model).score(QUERY, DOCUMENTS), abs=1e-4)


@every_mode
def test_an_instruction_changes_scores_and_caches_do_not_mix(model, mode):
    plain, other = make(model, mode), make(model, mode, instruction="Finde die Stelle.")
    assert other.instruction == "Finde die Stelle."
    assert plain.score(QUERY, DOCUMENTS) != pytest.approx(other.score(QUERY, DOCUMENTS), abs=1e-6)
    assert plain.score(QUERY, DOCUMENTS) == pytest.approx(make(model, mode).score(QUERY, DOCUMENTS), abs=1e-6)


# The table of bad input.


@every_mode
def test_no_documents_make_no_model_call(model, mode):
    retriever = make(model, mode)
    calls = []
    handle = model.model.embed_tokens.register_forward_hook(lambda *_: calls.append(1))
    try:
        for empty in ([], (), iter(())):
            assert len(retriever.rank(QUERY, empty, top_n=3, min_share=0.1, max_tokens=9)) == 0
        assert retriever.score(QUERY, []) == []
        assert retriever.head_scores(QUERY, []).shape == (4, 0)
        assert len(retriever.encode([]).rank(QUERY)) == 0
        assert len(retriever.rank(QUERY, []).explain()) == 0
        assert calls == []
    finally:
        handle.remove()


@every_mode
def test_one_document(model, mode):
    ranking = make(model, mode).rank(QUERY, DOCUMENTS[:1])
    assert indices(ranking) == [0]


@every_mode
@pytest.mark.parametrize("blank", ["", " ", "\n\t ", Passage(text=" ", id="b"), {"text": "", "metadata": {"k": 1}}])
@pytest.mark.slow
def test_a_blank_document_comes_last_with_the_lowest_score(model, mode, blank):
    retriever = make(model, mode)
    documents = [blank, *DOCUMENTS, blank]
    ranking = retriever.rank(QUERY, documents)
    scores = retriever.score(QUERY, documents)
    assert indices(ranking)[-2:] == [0, 6]
    assert scores[0] == scores[6] == min(scores[1:6])
    assert sorted(indices(ranking)) == list(range(7))
    without = retriever.score(QUERY, DOCUMENTS)
    assert scores[1:6] == pytest.approx(without, abs=1e-6), "a blank document changes nothing for the others"
    heads = retriever.head_scores(QUERY, documents)
    assert torch.equal(heads[:, 0], heads[:, 1:6].amin(dim=1))


@every_mode
@pytest.mark.parametrize("blanks", [[""], ["", " ", "\n"]])
def test_blank_documents_alone_score_nothing(model, mode, blanks):
    retriever = make(model, mode)
    assert retriever.score(QUERY, blanks) == [0.0] * len(blanks)
    assert indices(retriever.rank(QUERY, blanks)) == list(range(len(blanks)))
    assert torch.equal(retriever.head_scores(QUERY, blanks), torch.zeros(4, len(blanks)))
    assert [explained.tokens for explained in retriever.rank(QUERY, blanks).explain()] == [()] * len(blanks)


@every_mode
def test_duplicates_keep_place_and_id(model, mode):
    twins = [Passage(text="The keeper counts.", id=name) for name in "abc"]
    ranking = make(model, mode).rank(QUERY, [*twins, "Bread is baked."])
    assert sorted(indices(ranking)) == [0, 1, 2, 3]
    assert all(ranked.passage is twins[ranked.index] for ranked in ranking if ranked.index < 3)


@pytest.mark.parametrize("mode", PER_PASSAGE_MODES)
def test_equal_scores_keep_the_callers_order(model, mode):
    same = ["The keeper counts."] * 4
    retriever = make(model, mode)
    assert len(set(retriever.score(QUERY, same))) == 1
    assert indices(retriever.rank(QUERY, same)) == [0, 1, 2, 3]


@pytest.mark.parametrize("readout", ["published", "evidence"])
@pytest.mark.parametrize("mode", PER_PASSAGE_MODES)
def test_equal_texts_among_others_have_equal_scores(model, mode, readout):
    """Attention to two copies differs by the last bit, depending on where in the list they stand."""
    text, long = "The keeper counts the ships.", "Storms came twice. They broke the lamp. " * 12
    documents = [text, "A cat slept.", long, *[f"The ships of day {day}." for day in range(7)], long, text, text]
    retriever = make(model, mode, readout=readout, piece_tokens=64)
    for query in (QUERY, "what broke?", "lamp"):
        scores = retriever.score(query, documents)
        assert scores[0] == scores[11] == scores[12]
        assert scores[2] == scores[10]


@every_mode
@pytest.mark.parametrize("query", ["", "  \n"])
def test_a_blank_query(model, mode, query):
    retriever = make(model, mode)
    encoded = retriever.encode(DOCUMENTS)
    for ask in (retriever.rank, retriever.score, retriever.head_scores):
        with pytest.raises(ValueError, match="query is blank"):
            ask(query, DOCUMENTS)
        with pytest.raises(ValueError, match="query is blank"):
            ask(query, [])
    for ask_encoded in (encoded.rank, encoded.score, encoded.head_scores):
        with pytest.raises(ValueError, match="query is blank"):
            ask_encoded(query)


@every_mode
def test_wrong_types(model, mode):
    retriever = make(model, mode)
    for query in (None, 3, b"bytes", [QUERY]):
        with pytest.raises(TypeError, match="query must be str"):
            retriever.rank(query, DOCUMENTS)
    for documents in ("one text", {"text": "x"}, 3, None):
        with pytest.raises(TypeError, match="put a single document into a list"):
            retriever.rank(QUERY, documents)
    with pytest.raises(TypeError, match="document 1 is int"):
        retriever.rank(QUERY, ["fine", 3])
    with pytest.raises(TypeError, match="document 0 is NoneType"):
        retriever.encode([None])


@every_mode
@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("top_n", wrong) for wrong in (0, -1, True, 1.5, "3")],
        ("max_tokens", 0),
        ("min_share", 2),
        ("order", "best"),
    ],
)
def test_options_out_of_range_or_of_the_wrong_type(model, mode, option, value):
    retriever = make(model, mode)
    for documents in (DOCUMENTS, []):
        with pytest.raises(ValidationError, match=option):
            retriever.rank(QUERY, documents, **{option: value})
    with pytest.raises(ValidationError, match=option):
        retriever.encode([]).rank(QUERY, **{option: value})


def test_unknown_heads_and_head_sets(model):
    with pytest.raises(ValueError, match=r"head \(4, 0\) is outside LlamaForCausalLM"):
        make(model, heads=[(4, 0)])
    with pytest.raises(TypeError, match=r"heads=\[1, 2\] is not understood"):
        make(model, heads=[1, 2])
    other = HeadSet(model="other/model", num_layers=9, num_heads=4, heads=[(1, 1)])
    with pytest.raises(
        ValueError, match=r"belongs to other/model .*but the model is LlamaForCausalLM \(llama, 4 layers"
    ):
        make(model, heads=other)
    twin = HeadSet(model="other/model", architecture="llama", num_layers=4, num_heads=4, heads=[(1, 1)])
    with pytest.warns(UserWarning, match=r"found on other/model and is used on LlamaForCausalLM"):
        make(model, heads=twin)


@every_mode
def test_a_document_longer_than_the_context_is_cut_for_scoring_and_returned_whole(model, mode):
    long = Passage(text="The keeper counts the ships. " * 90, title="Log", id="long-one")
    retriever = make(model, mode, context_length=400, piece_tokens=None)
    with pytest.warns(UserWarning, match=r"only the beginning of document 0 \(long-one\) is read") as caught:
        ranking = retriever.rank(QUERY, [long])
    (warning,) = warnings_of_call(caught)
    assert warning.filename == __file__
    assert ranking.truncated == (0,)
    assert ranking[0].truncated
    assert ranking[0].passage is long
    with pytest.warns(UserWarning, match="long-one"):
        assert numpy.isfinite(retriever.score(QUERY, [long])).all()
    with pytest.warns(UserWarning, match="long-one") as caught:  # noqa: PT031
        encoded = retriever.encode(["first", long])
        encoded.extend(["more"])
        encoded.remove(0)
        assert numpy.isfinite(encoded.score(QUERY)).all()
    (warning,) = warnings_of_call(caught)
    assert warning.filename == __file__
    assert encoded.truncated == {0}


@pytest.mark.parametrize("mode", PER_PASSAGE_MODES)
def test_pieces_read_a_document_that_is_longer_than_the_context_whole(model, mode):
    long = "Bread is baked at dawn. " * 60 + "The keeper counts the ships."
    retriever = make(model, mode, context_length=300, piece_tokens=64)
    ranking = retriever.rank(QUERY, [long, *DOCUMENTS])
    assert ranking.truncated == ()
    explained = next(passage for passage in ranking.explain() if passage.index == 0)
    assert explained.tokens[-1].end == len(long)


@every_mode
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_names_layer_head_and_document(mode, poison):
    model = tiny_model()
    heads_rows = 8
    with torch.no_grad():  # head 3 of layer 1 asks with what is not finite
        model.model.layers[1].self_attn.q_proj.weight[3 * heads_rows] = poison
    retriever = make(model, mode, [(1, 0), (1, 3)])
    with pytest.raises(FloatingPointError, match=r"attention of layer 1, head 3 to every document is not finite"):
        retriever.rank(QUERY, DOCUMENTS)
    assert numpy.isfinite(make(model, mode, [(1, 0)]).score(QUERY, DOCUMENTS)).all()


@every_mode
def test_the_document_named_is_the_callers(mode):
    """A token id that only one document has, with an embedding that is not finite."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    (token,) = tokenizer.encode("~", add_special_tokens=False)
    with torch.no_grad():
        model.model.embed_tokens.weight[token] = float("nan")
    retriever = QRRetriever(model, tokenizer, heads=HEADS, mode=mode)
    with pytest.raises(FloatingPointError, match=r"layer 1, head 0 to document 3 is not finite"):
        retriever.rank(QUERY, ["one", "", "two", "a ~ b", "and ~ too", "three"])


@every_mode
def test_nothing_of_the_callers_is_changed(model, mode):
    documents = [copy.deepcopy(document) for document in DOCUMENTS]
    documents.append({"text": "x", "metadata": {"nested": {"list": [1, {"deep": 2}]}}})
    before = copy.deepcopy(documents)
    retriever = make(model, mode)
    ranking = retriever.rank(QUERY, documents, top_n=3, order="original")
    retriever.score(QUERY, documents)
    ranking.explain()
    encoded = retriever.encode(documents)
    encoded.extend(["more"])
    encoded.remove(0)
    assert documents == before
    assert [type(document) for document in documents] == [type(document) for document in before]


@every_mode
@pytest.mark.parametrize(
    "kind",
    [
        tuple,
        iter,
        UserList,
        lambda documents: (document for document in documents),
        lambda documents: numpy.array(documents, dtype=object),
    ],
)
@pytest.mark.slow
def test_lists_of_every_kind(model, mode, kind):
    texts = [document for document in DOCUMENTS if isinstance(document, str)]
    assert make(model, mode).score(QUERY, kind(texts)) == make(model, mode).score(QUERY, texts)


ODD_TEXTS = [
    "👩‍🚀🚀 🏳️‍🌈",
    "מי סופר את הספינות? السفن",
    "a\ud800b\udfff c",
    "\x00\x07\u200b",
    "x" * 700,
    "<|im_end|>\n<|im_start|>user",
    "][",
]


@every_mode
def test_odd_texts(model, mode):
    retriever = make(model, mode)
    ranking = retriever.rank("who \ud800 🚀 <|im_end|> השומר?", ODD_TEXTS)
    assert sorted(indices(ranking)) == list(range(len(ODD_TEXTS)))
    assert numpy.isfinite([ranked.score for ranked in ranking]).all()
    assert all(ranked.passage.text == ODD_TEXTS[ranked.index] for ranked in ranking)


@every_mode
@pytest.mark.parametrize("number", [1, 2, 10, 200])
@pytest.mark.slow
def test_one_to_two_hundred_documents(model, mode, number):
    rng = random.Random(number)
    texts = [" ".join(rng.choices(["ships", "keeper", "counts", "bread"], k=4)) for _ in range(number)]
    ranking = make(model, mode).rank(QUERY, texts)
    assert sorted(indices(ranking)) == list(range(number))
    assert not ranking.windowed


# What is kept.


@every_mode
def test_selection(model, mode):
    retriever = make(model, mode)
    order = indices(retriever.rank(QUERY, DOCUMENTS))
    assert indices(retriever.rank(QUERY, DOCUMENTS, top_n=numpy.int64(2))) == order[:2]
    assert indices(retriever.rank(QUERY, DOCUMENTS, top_n=2, order="original")) == sorted(order[:2])
    assert indices(retriever.rank(QUERY, DOCUMENTS, min_share=1.0)) == order[:1]
    assert indices(retriever.rank(QUERY, DOCUMENTS, max_tokens=1)) == order[:1]
    assert indices(retriever.rank(QUERY, DOCUMENTS, max_tokens=10**6)) == order
    counts = dict(zip([2, 0, 1, 3, 4], [50, 20, 3, 4, 5], strict=True))
    by_text = {retriever.rank(QUERY, DOCUMENTS)[order.index(index)].passage.content: n for index, n in counts.items()}
    wanted, left = [order[0]], 40 - counts[order[0]]
    for index in order[1:]:
        if counts[index] <= left:
            wanted.append(index)
            left -= counts[index]
    assert indices(retriever.rank(QUERY, DOCUMENTS, max_tokens=40, token_counter=by_text.__getitem__)) == wanted


def test_the_budget_counts_with_the_models_tokenizer_by_default(model):
    retriever = make(model)
    order = indices(retriever.rank(QUERY, DOCUMENTS))
    passages = {ranked.index: ranked.passage for ranked in retriever.rank(QUERY, DOCUMENTS)}
    budget = sum(retriever.count_tokens(passages[index].content) for index in order[:2])
    assert indices(retriever.rank(QUERY, DOCUMENTS, max_tokens=budget))[:2] == order[:2]
    assert order[1] not in indices(retriever.rank(QUERY, DOCUMENTS, max_tokens=budget - 1))


@every_mode
def test_rank_lists(model, mode):
    retriever = make(model, mode)
    lists = [DOCUMENTS, [], DOCUMENTS[:2]]
    queries = [QUERY, "What is baked?", "Where?"]
    rankings = retriever.rank_lists(queries, lists, top_n=2)
    alone = [retriever.rank(query, documents, top_n=2) for query, documents in zip(queries, lists, strict=True)]
    assert [indices(ranking) for ranking in rankings] == [indices(ranking) for ranking in alone]
    assert retriever.rank_lists([], []) == []
    with pytest.raises(ValueError, match="found 2 queries and 3 lists; expected as many queries as lists"):
        retriever.rank_lists(queries[:2], lists)
    with pytest.raises(ValueError, match="found one string"):
        retriever.rank_lists("abc", lists)


# Shared models.


@every_mode
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.slow
def test_a_shared_model_and_tokenizer_are_left_exactly_as_found(mode, fails):
    model, tokenizer = tiny_model().train(), tiny_tokenizer()
    ids = torch.arange(5, 30)[None]
    model.set_attn_implementation("sdpa")
    seen = []
    model.model.layers[0].register_forward_hook(lambda *_: seen.append(1))
    if fails:
        model.model.layers[1].mlp.register_forward_pre_hook(_fail_inside_a_ranking)
    with torch.no_grad():
        outputs = model.eval()(ids).logits
    model.train()
    before, spelled = snapshot(model), tokenizer.backend_tokenizer.to_str()
    weights = [parameter.data_ptr() for parameter in model.parameters()]
    retriever = QRRetriever(model, tokenizer, heads=HEADS, mode=mode)
    if fails:
        _FAILING.append(True)
        try:
            with pytest.raises(KeyboardInterrupt):
                retriever.rank(QUERY, DOCUMENTS)
        finally:
            _FAILING.clear()
    else:
        retriever.rank(QUERY, DOCUMENTS)
    assert str(snapshot(model)) == str(before)
    assert model.config._attn_implementation == "sdpa"
    assert tokenizer.backend_tokenizer.to_str() == spelled
    assert [parameter.data_ptr() for parameter in model.parameters()] == weights
    assert all(parameter.grad is None for parameter in model.parameters())
    with torch.no_grad():
        assert torch.equal(model.eval()(ids).logits, outputs)
    # A ranking that failed leaves nothing half done behind either.
    assert retriever.score(QUERY, DOCUMENTS) == pytest.approx(
        make(tiny_model(), mode).score(QUERY, DOCUMENTS), abs=1e-6
    )


_FAILING = []


def _fail_inside_a_ranking(*_):
    if _FAILING:
        raise KeyboardInterrupt


@every_mode
def test_a_failure_in_the_query_pass_leaves_the_list_usable(mode):
    model = tiny_model()
    retriever = make(model, mode)
    encoded = retriever.encode(DOCUMENTS)
    handle = model.model.layers[1].mlp.register_forward_pre_hook(_fail_inside_a_ranking)
    _FAILING.append(True)
    try:
        with pytest.raises(KeyboardInterrupt):
            encoded.rank(QUERY)
    finally:
        _FAILING.clear()
        handle.remove()
    assert encoded.score(QUERY) == pytest.approx(make(tiny_model(), mode).score(QUERY, DOCUMENTS), abs=1e-6)


@every_mode
@pytest.mark.slow
def test_many_threads_rank_as_one(model, mode):
    retriever = make(model, mode)
    other = make(model, mode, heads=[(0, 1)])
    queries = [f"Who counts {number} ships?" for number in range(6)]
    wanted = [make(model, mode).score(query, DOCUMENTS) for query in queries]
    wanted_other = [make(model, mode, heads=[(0, 1)]).score(query, DOCUMENTS) for query in queries]
    scores, other_scores = {}, {}

    def ask(number):
        scores[number] = retriever.score(queries[number], DOCUMENTS)
        other_scores[number] = other.score(queries[number], DOCUMENTS)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(6):
        assert scores[number] == pytest.approx(wanted[number], abs=1e-5)
        assert other_scores[number] == pytest.approx(wanted_other[number], abs=1e-5)


@every_mode
def test_the_embedded_model_finds_the_answer(embedded, mode):
    retriever = QRRetriever(embedded.model, embedded.tokenizer, mode=mode, model_name=embedded.model_name)
    documents = [
        "The ferry to the island leaves at nine and costs four crowns.",
        "Bread in the village is baked before dawn by two sisters.",
        "The lighthouse at Ellery Point was built in 1871 after a storm destroyed the old one.",
        "In winter the harbour freezes and the boats are drawn ashore.",
    ]
    assert retriever.rank("When was the lighthouse built?", documents)[0].index == 2
    assert retriever.rank("Who bakes the bread?", documents)[0].index == 1


def test_no_mode_is_the_mode_of_the_heads(tmp_path):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    retriever = QRRetriever(model, tokenizer, heads=[(1, 0)])
    assert retriever.mode == "listwise"  # pairs on a model without a shipped set
    path = tmp_path / "heads.json"
    retriever.heads.model_copy(update={"mode": "late"}).save(path)
    late = QRRetriever(model, tokenizer, heads=path)
    assert (late.mode, late.rank("lamp", ["a lamp", "a boat"]).mode) == ("late", "late")
    assert "mode='late', readout='published'" in repr(late)
    assert QRRetriever(model, tokenizer, heads=path, mode="independent").mode == "independent"


def test_the_embedded_model_is_read_as_its_heads_rank_best(embedded):
    assert (embedded.mode, embedded.heads.name, embedded.heads.recommended) == ("late", "default", True)
    assert embedded.rank("lamp", ["a lamp"]).mode == "late"
