"""Readers of labelled data, on small files of the project's own in each format, the malformed ones among them."""

import csv
import gzip
import json

import pytest

from qrhead_rag.core.passage import Passage
from qrhead_rag.datasets.examples import LabelledExample
from qrhead_rag.datasets.load import DatasetError, detect_format, load_examples, ordered, sample_examples, write_jsonl
from tests.helpers.data import DATA


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1), encoding="utf-8")
    return path


def texts(example, indices):
    return [example.documents[index].text for index in indices]


HOTPOT = {
    "_id": "q1",
    "question": "Which bridge did the architect of the mill build?",
    "answer": "the Long Span",
    "type": "bridge",
    "level": "easy",
    "supporting_facts": [["Mill", 0], ["Long Span", 1], ["Mill", 1]],
    "context": [
        ["Harbour", ["The harbour is shallow.", " Ships wait outside."]],
        ["Long Span", ["The Long Span is a bridge.", " Ada Lund built it."]],
        ["Mill", ["The mill is Ada Lund's work.", " It burnt down."]],
    ],
}


def test_hotpotqa_takes_the_paragraphs_of_supporting_titles(tmp_path):
    [example] = load_examples(write(tmp_path / "hotpot.json", [HOTPOT]))
    assert example.id == "q1"
    assert example.answer == "the Long Span"
    assert example.relevant == (1, 2)
    assert example.documents[2] == Passage(text="The mill is Ada Lund's work. It burnt down.", title="Mill", id="Mill")


def test_hotpotqa_in_columns_as_the_hub_has_it_reads_the_same(tmp_path):
    columns = HOTPOT | {
        "context": {"title": [t for t, _ in HOTPOT["context"]], "sentences": [s for _, s in HOTPOT["context"]]},
        "supporting_facts": {
            "title": [t for t, _ in HOTPOT["supporting_facts"]],
            "sent_id": [s for _, s in HOTPOT["supporting_facts"]],
        },
    }
    rows = load_examples(write(tmp_path / "rows.json", [HOTPOT]))
    assert load_examples(write(tmp_path / "columns.jsonl", json.dumps(columns))) == rows


def test_malformed_records_are_all_reported_with_file_and_line(tmp_path):
    no_context = {key: value for key, value in HOTPOT.items() if key != "context"}
    no_such_title = HOTPOT | {"supporting_facts": [["Tower", 0]]}
    path = tmp_path / "hotpot.jsonl"
    lines = [json.dumps(no_context), json.dumps(HOTPOT), "", '{"question": "cut o', json.dumps(no_such_title), "[1]"]
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DatasetError) as caught:
        load_examples(path, format="hotpotqa")
    positions = [(problem.path, problem.line) for problem in caught.value.problems]
    assert positions == [(path, 1), (path, 4), (path, 5), (path, 6)]
    assert f"{path}:1: context: Field required" in str(caught.value)
    assert "Tower" in str(caught.value)
    assert "--skip-bad" in str(caught.value)
    with pytest.warns(UserWarning, match=rf"{path.name}:4: not JSON"):
        assert [example.id for example in load_examples(path, format="hotpotqa", skip_bad=True)] == ["q1"]


def test_line_of_a_record_in_an_array_is_where_it_begins(tmp_path):
    path = write(tmp_path / "hotpot.json", [HOTPOT, HOTPOT | {"question": "  "}])
    with pytest.raises(DatasetError) as caught:
        load_examples(path)
    [problem] = caught.value.problems
    second = json.dumps([HOTPOT], indent=1).count("\n") + 1
    assert problem.line == second
    assert "blank" in problem.reason


def test_an_array_cut_off_gives_what_stands_before(tmp_path):
    path = tmp_path / "hotpot.json"
    path.write_text(json.dumps([HOTPOT, HOTPOT])[:-60], encoding="utf-8")
    with pytest.raises(DatasetError, match="nothing after it was read"):
        load_examples(path)
    with pytest.warns(UserWarning, match="nothing after it was read"):
        assert len(load_examples(path, skip_bad=True)) == 1


@pytest.mark.parametrize("laid_out", ["lines", "array", "whole"])
def test_bytes_that_are_no_utf8_spoil_their_record_alone(tmp_path, laid_out):
    bad = json.dumps(HOTPOT).encode().replace(b"harbour is", b"harb\xe9r is")
    good = json.dumps(HOTPOT).encode()
    path = tmp_path / "hotpot.json"
    content = {"lines": good + b"\n" + bad + b"\n" + good, "array": b"[" + good + b",\n" + bad + b",\n" + good + b"]"}
    path.write_bytes(content.get(laid_out, bad))
    line, others = (1, 0) if laid_out == "whole" else (2, 2)
    with pytest.raises(DatasetError, match=rf"{path.name}:{line}: not UTF-8: byte 0xe9"):
        load_examples(path, format="hotpotqa")
    if others:
        with pytest.warns(UserWarning, match="not UTF-8"):
            assert len(load_examples(path, skip_bad=True)) == others


@pytest.mark.parametrize("odd", ["[" * 100_000, "9" * 5000])
def test_json_that_python_does_not_read_is_malformed(tmp_path, odd):
    good = json.dumps(HOTPOT)
    path = write(tmp_path / "lines.jsonl", f"{good}\n{odd}\n{good}\n")
    with pytest.warns(UserWarning, match=r"lines\.jsonl:2: not JSON"):
        assert len(load_examples(path, skip_bad=True)) == 2
    path = write(tmp_path / "array.json", f"[{good},\n{odd},\n{good}]")
    with pytest.warns(UserWarning, match=r"array\.json:2: not JSON.*nothing after it was read"):
        assert len(load_examples(path, skip_bad=True)) == 1


def test_a_gzipped_file_cut_off_is_named(tmp_path):
    path = tmp_path / "nq.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(HOTPOT).encode() * 50)[:-20])
    with pytest.raises(ValueError, match=r"nq\.jsonl\.gz is not a complete gzip file"):
        load_examples(path)
    path.write_bytes(b"no gzip at all")
    with pytest.raises(ValueError, match=r"nq\.jsonl\.gz is not a complete gzip file"):
        load_examples(path)


def test_a_file_with_nothing_but_broken_lines_is_reported_by_line(tmp_path):
    with pytest.raises(DatasetError, match=r"broken\.jsonl:1: not JSON"):
        load_examples(write(tmp_path / "broken.jsonl", '{"question": "cut'))


def test_nothing_usable_is_an_error_even_when_skipping(tmp_path):
    path = write(tmp_path / "hotpot.json", [{"context": [], "supporting_facts": []}])
    with pytest.raises(DatasetError):
        load_examples(path, skip_bad=True)
    with pytest.raises(ValueError, match="no examples"):
        load_examples(write(tmp_path / "empty.jsonl", ""), format="jsonl")


PARAGRAPHS = [
    {"idx": 0, "title": "Owl", "paragraph_text": "Owls hunt by ear.", "is_supporting": False},
    {"idx": 1, "title": "", "paragraph_text": "Bats hunt by echo.", "is_supporting": True},
]


def test_qrhead_json(tmp_path):
    record = {"idx": 7, "question": "What hunts by echo?", "paragraphs": PARAGRAPHS, "gt_docs": ["1"]}
    path = write(tmp_path / "lme.json", [record, record | {"gt_docs": [9]}])
    with pytest.warns(UserWarning, match="gt_docs names \\['9'\\]"):
        [example] = load_examples(path, skip_bad=True)
    assert (example.id, example.relevant) == ("7", (1,))
    assert example.documents[1] == Passage(text="Bats hunt by echo.", id="1")


def test_musique_and_its_unanswerable_twin(tmp_path):
    record = {
        "id": "2hop__1",
        "question": "What hunts by echo?",
        "answer": "Bats",
        "answer_aliases": ["bat"],
        "paragraphs": PARAGRAPHS,
    }
    unanswerable = record | {"paragraphs": [PARAGRAPHS[0]]}
    path = tmp_path / "musique.jsonl"
    path.write_text(f"{json.dumps(record)}\n{json.dumps(unanswerable)}\n", encoding="utf-8")
    answerable, other = load_examples(path)
    assert (answerable.relevant, other.relevant) == ((1,), ())
    assert answerable.metadata["answers"] == ["bat"]


def session(*contents, evidence=()):
    roles = ["user", "assistant"] * len(contents)
    return [
        {"role": role, "content": content} | ({"has_answer": True} if index in evidence else {})
        for index, (role, content) in enumerate(zip(roles, contents, strict=False))
    ]


LONGMEMEVAL = {
    "question_id": "m1",
    "question_type": "single-session-user",
    "question": "What is my cat called?",
    "answer": 9,
    "question_date": "2024/03/01",
    "haystack_dates": ["2024/01/01", "2024/02/01"],
    "haystack_session_ids": ["s1", "s2"],
    "haystack_sessions": [
        session("Good morning.", "Good morning to you."),
        session("It rains.", "Take a coat.", "My cat is called Nine.", "A fine name.", evidence=[2]),
    ],
    "answer_session_ids": ["s2"],
}


def test_longmemeval_by_session(tmp_path):
    [example] = load_examples(write(tmp_path / "lme.json", [LONGMEMEVAL]))
    assert [document.id for document in example.documents] == ["s1", "s2"]
    assert example.relevant == (1,)
    assert example.answer == "9"
    assert example.documents[0].content == "2024/01/01\nuser: Good morning.\nassistant: Good morning to you."


def test_longmemeval_by_round(tmp_path):
    [example] = load_examples(write(tmp_path / "lme.json", [LONGMEMEVAL]), unit="round")
    assert [document.id for document in example.documents] == ["s1_1", "s2_1", "s2_2"]
    assert texts(example, example.relevant) == ["user: My cat is called Nine.\nassistant: A fine name."]


def test_longmemeval_abstention_has_nothing_relevant(tmp_path):
    [example] = load_examples(write(tmp_path / "lme.json", [LONGMEMEVAL | {"question_id": "m1_abs"}]))
    assert example.relevant == ()
    assert example.metadata["abstention"] is True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"haystack_dates": ["2024/01/01"]}, "have 2, 2, 1"),
        ({"answer_session_ids": ["s9"]}, "s9"),
        ({"answer_session_ids": []}, "no session of m1 is marked"),
        ({"haystack_sessions": [[{"role": "user"}], []]}, "haystack_sessions.0.0.content: Field required"),
    ],
)
def test_longmemeval_malformed(tmp_path, change, message):
    with pytest.raises(DatasetError, match=message):
        load_examples(write(tmp_path / "lme.json", [LONGMEMEVAL | change]))


LOCOMO = {
    "sample_id": "c1",
    "conversation": {
        "speaker_a": "Ana",
        "speaker_b": "Bo",
        "session_2_date_time": "2 May",
        "session_2": [{"speaker": "Bo", "dia_id": "D2:1", "text": "The boat is sold."}],
        "session_1_date_time": "1 May",
        "session_1": [
            {"speaker": "Ana", "dia_id": "D1:1", "text": "Look!", "blip_caption": "a red boat"},
            {"speaker": "Bo", "dia_id": "D1:2", "text": "Lovely."},
        ],
        "session_3_date_time": "3 May",
    },
    "qa": [
        {
            "question": "What colour was the boat that was sold?",
            "answer": 3,
            "evidence": ["D1:01; D2:1"],
            "category": 1,
        },
        {"question": "Who likes snow?", "evidence": [], "category": 5, "adversarial_answer": "Ana"},
    ],
}


def test_locomo_by_turn(tmp_path):
    first, second = load_examples(write(tmp_path / "locomo.json", [LOCOMO]))
    assert texts(first, first.relevant) == ["Ana: Look! [shares a red boat]", "Bo: The boat is sold."]
    assert (first.answer, second.answer) == ("3", None)
    assert (second.relevant, second.metadata["adversarial_answer"]) == ((), "Ana")
    assert all(turn is other for turn, other in zip(first.documents, second.documents, strict=True))


def test_locomo_by_session(tmp_path):
    first, _ = load_examples(write(tmp_path / "locomo.json", LOCOMO), unit="session")
    assert [document.content for document in first.documents] == [
        "1 May\nAna: Look! [shares a red boat]\nBo: Lovely.",
        "2 May\nBo: The boat is sold.",
    ]
    assert first.relevant == (0, 1)


def test_locomo_a_malformed_question_leaves_the_others(tmp_path):
    bad = [
        {"question": "?", "evidence": ["D:3"], "category": 1},
        {"question": "?", "evidence": ["D7:1"], "category": 1},
    ]
    path = write(tmp_path / "locomo.json", [LOCOMO | {"qa": [*bad, *LOCOMO["qa"], {"category": 2}]}])
    with pytest.raises(DatasetError) as caught:
        load_examples(path)
    reasons = [problem.reason for problem in caught.value.problems]
    assert len(reasons) == 3
    assert "qa 0: evidence 'D:3' is not of the form" in reasons[0]
    assert "qa 1: evidence 'D7:1' names no turn" in reasons[1]
    assert "qa 4: question: Field required" in reasons[2]
    with pytest.warns(UserWarning, match="3 malformed"):
        assert [example.id for example in load_examples(path, skip_bad=True)] == ["c1:2", "c1:3"]


@pytest.fixture
def clipper(tmp_path):
    book = tmp_path / "books" / "12"
    book.mkdir(parents=True)
    for chapter in (1, 2, 10):
        (book / f"{chapter}.txt").write_text(f"Chapter text {chapter}.\n", encoding="utf-8")
    claims = tmp_path / "claims"
    claims.mkdir()

    def make(*rows):
        with (claims / "12.csv").open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["facts", "corrupted_facts", "source"])
            writer.writerows(rows)
        return tmp_path

    return make


def test_clipper_takes_the_chapters_of_a_claim_in_their_order(clipper):
    folder = clipper(["Ida sails.", "Ida drowns.", "Chapters 1-2, 10"], ["Tom\nstays.", "Tom\nleaves.", "Chapter 10"])
    whole_book, one_chapter = load_examples(folder)
    assert [document.title for document in whole_book.documents] == ["Chapter 1", "Chapter 2", "Chapter 10"]
    assert (whole_book.relevant, one_chapter.relevant) == ((0, 1, 2), (2,))
    assert (one_chapter.query, one_chapter.metadata) == (
        "Tom\nstays.",
        {"book": "12", "corrupted_facts": "Tom\nleaves."},
    )


def test_clipper_malformed_rows_have_the_line_they_begin_on(clipper):
    folder = clipper(
        ["Two\nlines.", "No.", "Chapter 1"], ["x", "y", "Chapter 3"], ["x", "y", "Prologue"], ["x", "", "Chapter 1"]
    )
    with pytest.raises(DatasetError) as caught:
        load_examples(folder)
    assert [problem.line for problem in caught.value.problems] == [4, 5, 6]
    assert "names chapters [3], the book has [1, 2, 10]" in caught.value.problems[0].reason


def test_clipper_names_the_chapter_or_claim_that_is_no_utf8(clipper):
    folder = clipper(["Ida sails.", "Ida drowns.", "Chapter 1"], ["Tom st\udce9ys.", "Tom leaves.", "Chapter 2"])
    with pytest.raises(DatasetError, match=r"12\.csv:3: column 'facts': not UTF-8: byte 0xe9"):
        load_examples(folder)
    (folder / "books" / "12" / "2.txt").write_bytes(b"Chapter two.\nCaf\xe9.\n")
    with pytest.raises(DatasetError, match=r"2\.txt:2: not UTF-8: byte 0xe9"):
        load_examples(folder)


def test_clipper_that_is_no_csv_ends_where_it_fails(clipper):
    folder = clipper(["Ida sails.", "Ida drowns.", "Chapter 1"], ["x" * 200_000, "y", "Chapter 1"])
    with pytest.warns(UserWarning, match=r"12\.csv:3: not CSV: field larger than field limit"):
        assert [example.query for example in load_examples(folder, skip_bad=True)] == ["Ida sails."]


@pytest.fixture
def beir(tmp_path):
    corpus = {"d1": "copper kettles of the north", "d2": "a copper mine", "d3": "sheep", "d4": "copper copper wire"}
    lines = [json.dumps({"_id": name, "title": "", "text": text}) for name, text in corpus.items()]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    queries = {"a": "where is copper mined", "b": "sheep shearing", "c": "unjudged"}
    lines = [json.dumps({"_id": name, "text": text}) for name, text in queries.items()]
    (tmp_path / "queries.jsonl").write_text("\n".join(lines), encoding="utf-8")
    qrels = tmp_path / "qrels"
    qrels.mkdir()
    (qrels / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\na\td2\t2\na\td3\t1\na\td1\t0\nb\td3\t1\n", encoding="utf-8"
    )
    return tmp_path


def test_beir_lists_come_from_bm25_and_misses_are_counted(beir):
    copper, sheep = load_examples(beir, candidates=3)
    assert [document.id for document in copper.documents[:1]] == ["d4"]
    assert {document.id for document in copper.documents} == {"d1", "d2", "d4"}
    [index] = copper.relevant
    assert copper.documents[index].id == "d2"
    assert (copper.grades, copper.missed) == ((2,), (1,))
    assert (sheep.documents[0].id, sheep.relevant, sheep.missed) == ("d3", (0,), ())


def test_beir_malformed_judgements(beir):
    with (beir / "qrels" / "test.tsv").open("a", encoding="utf-8") as stream:
        stream.write("a\td9\t1\r\na\td1\r\nb\td1\tyes\r\n")
    with pytest.raises(DatasetError) as caught, pytest.warns(UserWarning, match="'d9' on line 6"):
        load_examples(beir)
    assert [problem.line for problem in caught.value.problems] == [7, 8]
    with (beir / "corpus.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('\n{"_id": "d5"}\n')
    with (
        pytest.raises(DatasetError, match=r"corpus\.jsonl:5: text: Field required"),
        pytest.warns(UserWarning, match="d9"),
    ):
        load_examples(beir)
    with pytest.raises(FileNotFoundError, match=r"qrels/dev\.tsv|qrels.dev\.tsv"):
        load_examples(beir, split="dev")


def dpr(question, answers, *contexts):
    return json.dumps({"question": question, "answers": answers, "ctxs": list(contexts)})


def test_dpr_lists_of_gold_alone_are_filled_with_passages_that_hold_no_answer(tmp_path):
    gold = {"title": "Kettle", "text": "The copper kettle was made in Ombre.", "isgold": True, "hasanswer": True}
    others = [
        dpr(f"question {index}?", [f"answer{index}"], {"title": "", "text": text, "isgold": True})
        for index, text in enumerate(
            ["A copper kettle boils.", "The kettle of ombre is copper.", "Copper roofs.", "Tea", "Ombres have kettles"]
        )
    ]
    path = tmp_path / "nq.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.write("\n".join([dpr("where was the copper kettle made", ["Ombre"], gold), *others]))
    example = load_examples(path, candidates=4)[0]
    assert len(example.documents) == 4
    assert texts(example, example.relevant) == [gold["text"]]
    contents = [document.text for document in example.documents]
    assert "A copper kettle boils." in contents
    assert "The kettle of ombre is copper." not in contents  # the answer stands in it
    assert len(load_examples(path)[0].documents) == 5  # all there are, but the one with the answer


def test_dpr_lists_that_have_negatives_stay(tmp_path):
    contexts = [{"text": "no", "hasanswer": False}, {"text": "yes", "hasanswer": True}]
    [example] = load_examples(write(tmp_path / "dpr.jsonl", dpr("who?", ["yes"], *contexts)))
    assert (len(example.documents), example.relevant) == (2, (1,))


@pytest.mark.parametrize(
    ("format", "record", "message"),
    [
        ("musique", {"id": "m", "question": "What?"}, "paragraphs: Field required"),
        ("musique", {"id": "m", "question": "What?", "paragraphs": [{"idx": 0}]}, "paragraphs.0.paragraph_text"),
        ("qrhead", {"idx": 1, "question": "What?", "paragraphs": []}, "gt_docs: Field required"),
        ("qrhead", {"idx": 1, "question": "What?", "paragraphs": [], "gt_docs": []}, "without documents"),
        ("dpr", {"question": "What?", "answers": "one", "ctxs": []}, "answers: Input should be a valid list"),
        ("dpr", {"question": "What?", "answers": [], "ctxs": [{"title": "x"}]}, "ctxs.0.text: Field required"),
        ("locomo", {"sample_id": "c", "conversation": {"speaker_a": "Ana"}, "qa": []}, "has no session_<number>"),
        ("longmemeval", {"question_id": "m"}, "question_type: Field required.*and 4 more"),
    ],
)
def test_malformed_records_of_each_format(tmp_path, format, record, message):
    path = tmp_path / "records.jsonl"
    path.write_text(f"\n{json.dumps(record)}\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=rf"records\.jsonl:2: .*{message}"):
        load_examples(path, format=format)


def test_plain_jsonl_by_index_or_by_id_and_back(tmp_path):
    by_index = {"query": "which?", "documents": ["one", {"text": "two", "id": "b"}], "relevant": [1]}
    by_id = by_index | {"documents": [{"text": "one", "id": "a"}, {"text": "two", "id": "b"}], "relevant": ["b", "a"]}
    path = tmp_path / "plain.jsonl"
    path.write_text(f"{json.dumps(by_index)}\n{json.dumps(by_id)}\n", encoding="utf-8")
    first, second = load_examples(path)
    assert (first.relevant, second.relevant) == ((1,), (1, 0))
    graded = first.model_copy(update={"grades": (2,), "missed": (1,), "metadata": {"kind": "x"}})
    write_jsonl([graded, second], tmp_path / "again.jsonl")
    assert load_examples(tmp_path / "again.jsonl") == [graded, second]
    lone = first.model_copy(update={"id": "0", "query": "half an emoji \ud83d"})
    write_jsonl([lone], tmp_path / "lone.jsonl")
    assert load_examples(tmp_path / "lone.jsonl") == [lone]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"relevant": [2]}, r"relevant documents \[2\] of a list of 2"),
        ({"relevant": [1, 1]}, "twice"),
        ({"relevant": ["z"]}, "expected a document id"),
        ({"documents": []}, "without documents"),
        ({"grades": [1, 2]}, "2 grades for 1"),
        ({"documnets": []}, "documnets: Extra inputs"),
    ],
)
def test_plain_jsonl_malformed(tmp_path, change, message):
    record = {"query": "which?", "documents": ["one", "two"], "relevant": [1]} | change
    with pytest.raises(DatasetError, match=message):
        load_examples(write(tmp_path / "plain.jsonl", json.dumps(record)), format="jsonl")


def test_candidates_cut_longer_lists_to_what_bm25_ranks_best(tmp_path):
    record = {"query": "red boat", "documents": ["a red boat", "a boat", "snow", "red"], "relevant": [2, 0]}
    [example] = load_examples(write(tmp_path / "plain.jsonl", json.dumps(record)), candidates=2)
    assert texts(example, range(2))[0] == "a red boat"
    assert (example.relevant, example.missed) == ((0,), (1,))


def test_formats_are_recognised_or_refused_by_name(tmp_path):
    assert detect_format(write(tmp_path / "a.json", [LONGMEMEVAL])) == "longmemeval"
    with pytest.raises(ValueError, match=r"fields \['colour'\].*--format"):
        detect_format(write(tmp_path / "b.json", [{"colour": 1}]))
    with pytest.raises(ValueError, match="expected one of beir, clipper"):
        load_examples(tmp_path / "a.json", format="csv")
    with pytest.raises(ValueError, match="split='dev' is not an option of the format longmemeval"):
        load_examples(tmp_path / "a.json", split="dev")
    with pytest.raises(FileNotFoundError):
        load_examples(tmp_path / "nowhere.json")


EXAMPLE = LabelledExample(
    id="e", query="q", documents=tuple(Passage(text=t) for t in "abcde"), relevant=(1, 4), grades=(3, 1)
)


def test_orders_move_the_labels_with_the_documents():
    assert ordered(EXAMPLE, "given") == EXAMPLE
    assert [d.text for d in ordered(EXAMPLE, "reversed").documents] == list("edcba")
    shuffled = ordered(EXAMPLE, "shuffled", seed=3)
    assert shuffled == ordered(EXAMPLE, "shuffled", seed=3) != ordered(EXAMPLE, "shuffled", seed=4)
    for example in (ordered(EXAMPLE, "reversed"), shuffled):
        assert [example.documents[index].text for index in example.relevant] == ["b", "e"]
        assert {example.documents[index].text: grade for index, grade in example.judgements.items()} == {"b": 3, "e": 1}
    with pytest.raises(ValueError, match="not an order"):
        EXAMPLE.reordered([0, 0, 1, 2, 3])


def test_parts_have_no_example_in_common_and_samples_keep_the_order():
    examples = [EXAMPLE.model_copy(update={"id": str(index)}) for index in range(20)]
    first, second = (sample_examples(examples, part=(number, 2)) for number in (1, 2))
    assert not {e.id for e in first} & {e.id for e in second}
    some = sample_examples(examples, count=5, seed=1)
    assert some == sample_examples(examples, count=5, seed=1)
    assert [int(e.id) for e in some] == sorted(int(e.id) for e in some)
    with pytest.raises(ValueError, match="part 3 of 2"):
        sample_examples(examples, part=(3, 2))


@pytest.mark.skipif(not DATA.is_dir(), reason="the data sets are absent")
@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("hotpotqa/hotpotqa_100.json", {}, 100),
        ("nq_open_oracle/nq-open-oracle.jsonl.gz", {}, 2655),
        ("scifact", {"candidates": 10}, 300),
        ("longmemeval/longmemeval_single.json", {"unit": "round"}, 1),
        ("longmemeval/longmemeval_sample.json", {}, 2),
        ("locomo/locomo_3.json", {"unit": "turn"}, 497),
        ("locomo/locomo_3.json", {"unit": "session"}, 497),
        ("clipper", {}, 122),
    ],
)
@pytest.mark.slow
def test_the_data_beside_the_project_is_read_whole(name, options, count):
    examples = load_examples(DATA / name, **options)
    assert len(examples) == count
    assert all(example.documents for example in examples)
    assert any(example.relevant for example in examples)
