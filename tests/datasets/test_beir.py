"""BEIR folders as people make them: what is said of them, and where."""

import json
import warnings

import pytest

from qrhead_rag.datasets.load import DatasetError, load_examples
from qrhead_rag.evaluate.evaluation import evaluate
from qrhead_rag.evaluate.methods import make_method

CORPUS = {"d1": "copper kettles of the north", "d2": "a copper mine", "d3": "sheep"}
QUERIES = {"a": "where is copper mined", "b": "sheep shearing"}
HEADER = "query-id\tcorpus-id\tscore\n"


@pytest.fixture
def beir(tmp_path):
    def write_jsonl(name, texts):
        rows = texts.items() if isinstance(texts, dict) else texts
        lines = [json.dumps({"_id": key, "text": text}) for key, text in rows]
        (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")

    def make(qrels, corpus=CORPUS, queries=QUERIES):
        write_jsonl("corpus.jsonl", corpus)
        write_jsonl("queries.jsonl", queries)
        (tmp_path / "qrels").mkdir(exist_ok=True)
        (tmp_path / "qrels" / "test.tsv").write_text(qrels, encoding="utf-8")
        return tmp_path

    return make


def labels(examples):
    return {
        example.id: {example.documents[index].id: grade for index, grade in example.judgements.items()}
        for example in examples
    }


def without_warning(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_examples(folder)


@pytest.mark.parametrize("header", [HEADER, "", "qid\tpid\tlabel\n", "\nquery_id\tdoc_id\trelevance\n"[1:]])
def test_the_first_judgement_counts_with_a_header_or_without(beir, header):
    folder = beir(f"{header}a\td2\t2\nb\td3\t1\n")
    assert labels(without_warning(folder)) == {"a": {"d2": 2}, "b": {"d3": 1}}


@pytest.mark.parametrize("first", ["a\td2\tyes", "a\td2", "a\td2\t0.5", "a\td2\tnan", "a\td2\tinf", "a\td2\t"])
def test_a_first_line_that_begins_with_a_query_is_no_header(beir, first):
    with pytest.raises(DatasetError, match=r"test\.tsv:1: (\d columns, expected 3|score '.*' is not a whole number)"):
        load_examples(beir(f"{first}\nb\td3\t1\n"))


def test_ids_may_be_numbers_and_grades_have_a_decimal_point(beir):
    folder = beir(
        "1\t20\t2.0\r\n\r\n1\t10\t0.0\r\n",
        [(10, "copper kettles"), (20, "a copper mine")],
        [(1, "where is copper mined")],
    )
    assert labels(without_warning(folder)) == {"1": {"20": 2}}


def test_what_the_judgements_name_and_the_folder_lacks_is_counted(beir):
    folder = beir(f"{HEADER}a\td2\t1\na\td8\t3\na\td9\t0\nz\td2\t1\n")
    with pytest.warns(UserWarning, match=r"judgements name what is not in") as caught:
        [example] = load_examples(folder)
    assert (labels([example]), example.missed) == ({"a": {"d2": 1}}, (3,))
    assert [str(warning.message).removeprefix(f"{folder}/qrels/") for warning in caught] == [
        "test.tsv: 1 judgements name what is not in queries.jsonl (query 'z' on line 5); left out",
        "test.tsv: 2 judgements name what is not in corpus.jsonl (document 'd8' on line 3); counted as missed where they "
        "are relevant",
    ]
    assert {warning.filename for warning in caught} == {__file__}
    with pytest.warns(UserWarning, match="corpus.jsonl"):
        [example] = load_examples(beir(f"{HEADER}a\td9\t1\n"))
    assert (example.relevant, example.missed) == ((), (1,))


def test_what_stands_twice_is_said(beir):
    corpus = [("d1", "copper"), ("d2", "mine"), ("d1", "sheep")]
    with pytest.warns(
        UserWarning, match=r"corpus\.jsonl: 1 texts have the _id of an earlier one .* 'd1' on line 3 and before on 1"
    ):
        [example] = load_examples(beir(f"{HEADER}b\td1\t1\n", corpus))
    assert [document.text for document in example.documents] == ["sheep", "mine"]
    with pytest.warns(UserWarning, match=r"queries\.jsonl: 1 texts have the _id"):
        load_examples(beir("b\td3\t1\n", queries=[("b", "wool"), ("b", "sheep")]))
    with pytest.warns(
        UserWarning, match=r"test\.tsv: 1 judgements change the score of an earlier one; .*'d2' on line 2"
    ):
        [example] = load_examples(beir("a\td2\t1\na\td2\t3\nb\td3\t1\nb\td3\t1\n"))[:1]
    assert example.grades == (3,)


def test_a_blank_query_is_named_by_file_and_line(beir):
    folder = beir("a\td2\t1\nb\td3\t1\n", queries={"b": "sheep", "a": " "})
    with pytest.raises(DatasetError, match=r"queries\.jsonl:2: .*query is blank"):
        load_examples(folder)
    with pytest.warns(UserWarning, match=r"queries\.jsonl:2: "):
        assert [example.id for example in load_examples(folder, skip_bad=True)] == ["b"]


def test_a_corpus_without_texts_is_an_error_of_each_query(beir):
    with (
        pytest.raises(DatasetError, match=r"queries\.jsonl:1: an example without documents|without documents"),
        pytest.warns(UserWarning, match=r"not in corpus\.jsonl"),
    ):
        load_examples(beir("a\td2\t1\n", corpus={}))


def test_a_grade_that_trec_eval_has_no_room_for_is_refused(beir):
    with pytest.raises(DatasetError, match=r"test\.tsv:1: score '2147483648' is not a whole number up to 1000000"):
        load_examples(beir(f"a\td2\t{2**31}\n"))


def test_queries_that_share_no_word_with_the_corpus_are_named(beir):
    folder = beir("a\td2\t1\nb\td3\t1\n", queries={"a": "where", "b": "sheep"})
    with pytest.warns(UserWarning, match=r"0 for 1 of 2 queries \(the first: 'where'\), which share no word") as caught:
        first, _ = load_examples(folder, candidates=2)
    assert len(caught) == 1
    assert [document.id for document in first.documents] == ["d1", "d2"]


@pytest.mark.parametrize("texts", [["7", "9"], ["好", "不"], ["?", "!"]])
def test_a_corpus_of_single_characters_is_evaluated(beir, texts):
    with pytest.warns(UserWarning, match=r"0 for 1 of 1 queries"):
        examples = load_examples(beir("a\td1\t1\n", corpus={"d1": texts[0], "d2": texts[1]}))
    with pytest.warns(UserWarning, match=r"bm25: every first-stage score is 0 in 1 of 1 lists \(the first: 'a'\)"):
        evaluation = evaluate(examples, {"bm25": make_method("bm25")}, metrics=["RR"])
    assert evaluation.values("bm25", "RR") == [1.0]


def test_a_folder_in_chinese_has_a_first_stage(beir):
    corpus = {"d1": "面包在黎明时烤好。", "d2": "图书馆出借地图一周。", "d3": "渡轮早上九点从北港开出。"}
    [example] = without_warning(beir("a\td3\t1\n", corpus=corpus, queries={"a": "渡轮什么时候开？"}))
    assert example.relevant == (0,)
