"""Metrics against the trec_eval binding, statistics against counting, methods by name, and an evaluation end to end."""

import itertools
import json
import re
import sys

import pytest
import pytrec_eval
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

from benchmarks import rerankers
from qrhead_rag import QRRetriever
from qrhead_rag.core.passage import Passage
from qrhead_rag.datasets.examples import LabelledExample
from qrhead_rag.evaluate.embedding import EmbeddingModel
from qrhead_rag.evaluate.evaluation import Evaluation, evaluate
from qrhead_rag.evaluate.methods import Ranked, by_score, cached_method, make_method
from qrhead_rag.evaluate.metrics import confidence_interval, measure, ndcg_of_scores, paired_test
from qrhead_rag.evaluate.writer import Answer
from tests.helpers.data import HOTPOTQA
from tests.helpers.tiny import tiny_model, tiny_tokenizer


def example(texts, relevant, *, query="which?", **fields):
    return LabelledExample(
        query=query, documents=tuple(Passage(text=text) for text in texts), relevant=tuple(relevant), **fields
    )


FOUR = example("abcd", [0, 3], grades=(1, 2), missed=(1,), id="four")
NONE = example("ab", [], id="none")


def test_metrics_equal_the_trec_eval_binding():
    rankings = [[3, 1, 0, 2], [1, 2, 0, 3], [0, 1]]
    values = measure(rankings, [FOUR, FOUR, NONE], ["nDCG@10", "R@2", "RR", "AP"])
    names = {"nDCG@10": "ndcg_cut_10", "R@2": "recall_2", "RR": "recip_rank", "AP": "map"}
    qrels = {str(i): {"0": 1, "3": 2, "unlisted": 1} for i in (0, 1)} | {"2": {"0": 0}}
    run = {str(i): {str(d): 1.0 / (1 + rank) for rank, d in enumerate(ranking)} for i, ranking in enumerate(rankings)}
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recall.2", "recip_rank", "map"})
    expected = evaluator.evaluate(run)
    for name, theirs in names.items():
        assert values[name] == [expected[str(i)][theirs] for i in range(3)]
    # by hand: one of three relevant documents in the first two
    assert values["R@2"][0] == pytest.approx(1 / 3)
    assert values["RR"][1] == pytest.approx(1 / 3)
    assert measure(rankings, [FOUR, FOUR, NONE], ["MRR", "RR"])["MRR"] == values["RR"]


def test_ties_keep_the_order_of_the_list():
    one_relevant_last = example("abc", [2])
    rows = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
    assert ndcg_of_scores(rows, one_relevant_last).tolist() == pytest.approx([0.5, 1.0])
    assert by_score([1, 2, 2, 1], 4).order == [1, 2, 0, 3]


def test_unknown_metric_is_named():
    with pytest.raises(ValueError, match="goodness"):
        measure([[0]], [FOUR], ["goodness"])


def test_interval_covers_the_mean_and_shrinks_with_queries():
    values = [0.0, 1.0, 1.0, 0.5, 0.25]
    few, many = confidence_interval(values), confidence_interval(values * 20)
    assert few.mean == many.mean == pytest.approx(0.55)
    assert few.low < few.mean < few.high
    assert many.high - many.low < (few.high - few.low) / 3
    assert confidence_interval([0.5, 0.5]) == (0.5, 0.5, 0.5)
    assert confidence_interval(values) == few
    with pytest.raises(ValueError, match="no values"):
        confidence_interval([])


def test_paired_test_is_the_share_of_sign_flips_as_large():
    first, second = [0.9, 0.5, 0.7, 0.2, 1.0], [0.4, 0.3, 0.6, 0.3, 0.2]
    differences = [a - b for a, b in zip(first, second, strict=True)]
    flips = [
        abs(sum(sign * d for sign, d in zip(signs, differences, strict=True)))
        for signs in itertools.product([1, -1], repeat=5)
    ]
    expected = sum(flip >= sum(differences) - 1e-9 for flip in flips) / len(flips)
    comparison = paired_test(first, second)
    assert comparison.difference == pytest.approx(sum(differences) / 5)
    assert comparison.p_value == pytest.approx(expected)
    assert paired_test(first, first) == (0.0, 1.0)
    with pytest.raises(ValueError, match="5 and 1 values"):
        paired_test(first, [1.0])


BOATS = example(
    ["a red boat", "snow in may", "the boat is red and sold"], [2], query="who sold the red boat", id="boats"
)
TREES = example(["an oak", "a birch and an oak"], [1], query="birch", id="trees")


def test_bm25_ranks_shared_words_first():
    method = make_method("bm25")
    assert method(BOATS.query, BOATS.documents).order == [2, 0, 1]
    assert method("nothing common", BOATS.documents).scores == [0.0, 0.0, 0.0]


def test_random_depends_on_seed_and_query_alone():
    documents = [Passage(text=str(i)) for i in range(30)]
    method, again, other = (make_method("random", seed=seed) for seed in (1, 1, 2))
    assert method("q", documents) == again("q", documents) != other("q", documents)
    assert method("q", documents) != method("p", documents)


def test_any_function_of_query_and_texts_is_a_method(tmp_path, monkeypatch):
    (tmp_path / "my_rerankers.py").write_text(
        "def longest(query, texts):\n    return [len(text) for text in texts]\n"
        "short = lambda query, texts: [1.0]\n"
        "endless = lambda query, texts: [float('nan')] * len(texts)\n"
        "nothing = lambda query, texts: None\n"
        "broken = lambda query, texts: texts[99]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    method = make_method("my_rerankers:longest")
    assert method("q", [Passage(text="aa", title="b"), Passage(text="aaaaa")]) == Ranked([1, 0], [4.0, 5.0])
    wrong = {"short": "1 scores for 2 documents", "endless": "2 of 2 scores are not finite", "nothing": "NoneType"}
    for name, message in wrong.items():
        with pytest.raises(ValueError, match=f"my_rerankers:{name}: .*{message}"):
            make_method(f"my_rerankers:{name}")("q", TREES.documents)
    with pytest.raises(RuntimeError, match="my_rerankers:broken failed on 'q': list index out of range") as caught:
        make_method("my_rerankers:broken")("q", TREES.documents)
    assert isinstance(caught.value.__cause__, IndexError)
    with pytest.raises(ValueError, match="my_rerankers:absent is None"):
        make_method("my_rerankers:absent")
    with pytest.raises(ImportError):
        make_method("no_such_module_here:f")


def test_heads_and_modes_are_methods():
    asked = []

    def load(heads, mode, readout):
        asked.append((heads, mode, readout))
        return QRRetriever(tiny_model(), tiny_tokenizer(), heads="all" if heads == "all" else [(1, 0)])

    method = make_method("all", load_retriever=load)
    make_method("default@late", load_retriever=load)
    make_method("mine.json", load_retriever=load)
    make_method("C:heads.json@late", load_retriever=load)
    make_method("nq@evidence@listwise", load_retriever=load)
    assert asked == [
        ("all", None, None),
        (None, "late", None),
        ("mine.json", None, None),
        ("C:heads.json", "late", None),
        ("nq", "listwise", "evidence"),
    ]
    ranked = method(BOATS.query, BOATS.documents)
    retriever = QRRetriever(tiny_model(), tiny_tokenizer(), heads="all")
    assert ranked.scores == pytest.approx(retriever.score(BOATS.query, BOATS.documents), abs=1e-6)
    assert ranked.order == by_score(ranked.scores, 3).order
    for name in ("all@sideways", "all@late@listwise", "all@evidence@evidence"):
        with pytest.raises(ValueError, match="expected at most one mode"):
            make_method(name, load_retriever=load)


@pytest.fixture
def embedding_folder(tmp_path):
    words = ["[PAD]", "[UNK]", "a", "red", "boat", "snow", "query", ":"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    return tmp_path


def by_hand(folder, text, *, first_token=False):
    words = {"a": 2, "red": 3, "boat": 4, "snow": 5, "query": 6, ":": 7}
    model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    with torch.no_grad():
        hidden = model(torch.tensor([[words[word] for word in text.split()]])).last_hidden_state[0]
    return torch.nn.functional.normalize(hidden[0] if first_token else hidden.mean(dim=0), dim=0)


def test_embeddings_are_means_whatever_they_are_batched_with(embedding_folder):
    vectors = EmbeddingModel(embedding_folder, batch_size=2).embed(["a red boat", "snow", "snow", "a boat"])
    expected = torch.stack([by_hand(embedding_folder, text) for text in ["a red boat", "snow", "snow", "a boat"]])
    torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=0)


def test_embedding_layout_of_sentence_transformers(embedding_folder):
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in kinds]
    (embedding_folder / "modules.json").write_text(json.dumps(modules))
    pooling = embedding_folder / "1_Pooling"
    pooling.mkdir()
    (pooling / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 16, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    )
    (embedding_folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "query : "}}))
    (embedding_folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 3}))
    scores = make_method(f"embedding:{embedding_folder}")("a", [Passage(text="red boat a snow"), Passage(text="snow")])
    query = by_hand(embedding_folder, "query : a", first_token=True)
    expected = [query @ by_hand(embedding_folder, text, first_token=True) for text in ("red boat a", "snow")]
    assert scores.scores == pytest.approx([float(score) for score in expected], abs=1e-5)
    (pooling / "config.json").write_text(json.dumps({"pooling_mode_lasttoken": True}))
    with pytest.raises(ValueError, match="lasttoken"):
        EmbeddingModel(embedding_folder)
    with pytest.raises(FileNotFoundError, match="no folder"):
        EmbeddingModel("no/such/folder")


class ScriptedWriter:
    """Ranks the passages it is shown by their length, writing the last one down twice and one that is not there."""

    def __init__(self):
        self.window_sizes = []

    def answer(self, context, question):
        texts = re.findall(r"^\[\d+\] (.*)$", context, re.MULTILINE)
        self.window_sizes.append(len(texts))
        assert f"Rank the {len(texts)} passages" in question
        assert "which?" in question
        best = sorted(range(1, len(texts) + 1), key=lambda number: -len(texts[number - 1]))
        return Answer(" > ".join(f"[{number}]" for number in [*best[:-3], best[0], 99]), truncated=False)


def test_rank_gpt_slides_over_the_list_and_keeps_what_the_model_leaves_out(monkeypatch):
    writer = ScriptedWriter()
    monkeypatch.setattr(rerankers, "writer", lambda: writer)
    rank_gpt = make_method("benchmarks.rerankers:rank_gpt")
    documents = [Passage(text="x" * (1 + 7 * index % 35)) for index in range(35)]
    ranked = rank_gpt("which?", documents)
    assert writer.window_sizes == [20, 20, 20]  # from 15, from 5, from 0
    lengths = [len(documents[index].text) for index in ranked.order]
    assert lengths[:17] == sorted(lengths, reverse=True)[:17]  # the model named as many of the last window
    assert sorted(ranked.order) == list(range(35))
    # of four the model names the best alone
    assert rank_gpt("which?", [Passage(text="x" * length) for length in (1, 2, 3, 4)]).order == [3, 0, 1, 2]


def test_a_cross_encoder_scores_each_pair_as_if_alone(embedding_folder, monkeypatch):
    torch.manual_seed(0)
    config = BertConfig.from_pretrained(embedding_folder, num_labels=1)
    BertForSequenceClassification(config).save_pretrained(embedding_folder)
    monkeypatch.setattr(rerankers, "CROSS_ENCODER", str(embedding_folder))
    rerankers.classifier.cache_clear()
    score = make_method("benchmarks.rerankers:cross_encoder")
    documents = [Passage(text=text) for text in ("a red boat", "snow", "a boat a snow : red")]
    together = score("red", documents)
    alone = [score("red", [document]).scores[0] for document in documents]
    assert together.scores == pytest.approx(alone, abs=1e-5)
    assert len(set(alone)) == 3
    rerankers.classifier.cache_clear()


def best_last(query, documents):
    return by_score([float(index) for index in range(len(documents))], len(documents))


def test_evaluation_reports_in_terms_of_the_given_list_whatever_the_order():
    oracle = {BOATS.documents[2].text: 1.0, TREES.documents[1].text: 1.0}
    seen = []

    def knows(query, documents):
        seen.append([document.text for document in documents])
        return by_score([oracle.get(document.text, 0.0) for document in documents], len(documents))

    results = {
        order: evaluate([BOATS, NONE, TREES], {"knows": knows, "last": best_last}, order=order, seed=5)
        for order in ("given", "reversed", "shuffled")
    }
    assert seen[2] == [document.text for document in reversed(BOATS.documents)]
    for evaluation in results.values():
        assert (evaluation.num_examples, evaluation.num_without_relevant) == (2, 1)
        assert evaluation.values("knows", "RR") == [1.0, 1.0]
        first = evaluation.results[0]
        assert (first.id, first.ranking[0], first.scores) == ("boats", 2, (0.0, 0.0, 1.0))
    assert results["given"].values("last", "RR") == [1.0, 1.0]
    assert results["reversed"].values("last", "RR") == pytest.approx([1 / 3, 1 / 2])


def test_evaluation_summary_comparison_and_files(tmp_path):
    worst = lambda query, documents: best_last(query, documents)._replace(order=list(range(len(documents))))  # noqa: E731
    calls = []
    evaluation = evaluate(
        [BOATS, TREES], {"best": best_last, "worst": worst}, metrics=["RR"], on_progress=lambda *c: calls.append(c)
    )
    assert calls == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    best, last = evaluation.summaries()
    assert (best.method, best.metrics["RR"].mean) == ("best", 1.0)
    assert last.metrics["RR"].mean == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert evaluation.compare("best", "worst", "RR").difference == pytest.approx(1 - (1 / 3 + 1 / 2) / 2)
    with pytest.raises(ValueError, match="no 'AP' of 'best'"):
        evaluation.compare("best", "worst", "AP")
    evaluation.write_jsonl(tmp_path / "queries.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "queries.jsonl").read_text().splitlines()]
    assert [(line["id"], line["method"], line["ranking"]) for line in lines] == [
        ("boats", "best", [2, 1, 0]),
        ("trees", "best", [1, 0]),
        ("boats", "worst", [0, 1, 2]),
        ("trees", "worst", [0, 1]),
    ]
    report = json.loads(evaluation.to_json())
    assert report["methods"][0]["metrics"]["RR"]["mean"] == 1.0
    assert Evaluation.model_validate_json(evaluation.model_dump_json()) == evaluation


def test_what_is_unknown_is_refused_before_anything_is_ranked():
    with pytest.raises(ValueError, match="goodness"):
        evaluate([BOATS], {"asked": lambda query, documents: pytest.fail("ranked")}, metrics=["goodness"])


def test_a_remembered_method_runs_once_for_each_query_and_list():
    asked = []

    def method(query, documents):
        asked.append(query)
        return best_last(query, documents)

    again = cached_method(method)
    assert again("q", BOATS.documents) == again("q", list(BOATS.documents)) == best_last("q", BOATS.documents)
    again("q", BOATS.documents[:2])
    again("p", BOATS.documents)
    assert asked == ["q", "q", "p"]


def test_evaluation_of_nothing_is_refused():
    with pytest.raises(ValueError, match="0 of 1 examples with a relevant document"):
        evaluate([NONE], {"last": best_last})
    with pytest.raises(ValueError, match="0 methods"):
        evaluate([BOATS], {})


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ImportError, match=r"pip install 'qrhead-rag\[eval\]'"):
        make_method("bm25")


@pytest.mark.skipif(not HOTPOTQA.exists(), reason="the data sets are absent")
def test_baselines_on_hotpotqa_are_where_they_were_measured():
    from qrhead_rag.datasets.load import load_examples

    examples = load_examples(HOTPOTQA)
    evaluation = evaluate(
        examples, {name: make_method(name) for name in ("bm25", "random")}, metrics=["nDCG@10"], order="shuffled"
    )
    bm25, chance = (summary.metrics["nDCG@10"].mean for summary in evaluation.summaries())
    assert bm25 == pytest.approx(0.857, abs=0.01)
    assert chance == pytest.approx(0.53, abs=0.06)


def test_ids_that_are_no_unicode_are_written(tmp_path):
    odd = example("ab", [0], id="odd \ud800")
    evaluate([odd], {"given": lambda query, texts: by_score([2, 1], 2)}, metrics=["RR"]).write_jsonl(tmp_path / "q")
    assert json.loads((tmp_path / "q").read_text())["id"] == odd.id
