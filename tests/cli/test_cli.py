"""The command: what it prints, and what it says about bad input."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from qrhead_rag import HeadSet, Passage, QRRetriever, __version__
from qrhead_rag.cli import app
from qrhead_rag.core.heads import parse_heads, shipped_head_sets
from qrhead_rag.datasets.bm25 import BM25
from qrhead_rag.demo import Comparison, Question, compare, load_handbook, select_comparisons, summary
from qrhead_rag.ranking.explanation import ExplainedPassage, TokenContribution
from qrhead_rag.ranking.result import RankedPassage, Ranking
from qrhead_rag.show.terminal import shade_passage, strongest_tokens
from tests.helpers.modes import MODES

QUERY = "how many ships passed"
TEXTS = ["The keeper paints the door.", "Forty ships passed on Monday.", "The lamp burns oil.", "Fog came at noon."]


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("\n".join([TEXTS[0], "", *TEXTS[1:]]) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def records(tmp_path):
    path = tmp_path / "log.jsonl"
    lines = [{"text": text, "title": f"Day {n}", "id": n, "page": n * 10} for n, text in enumerate(TEXTS)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def invoke(*arguments, stdin=None, columns="120"):
    return CliRunner().invoke(app, list(arguments), input=stdin, env={"COLUMNS": columns, "NO_COLOR": "1"})


def ranked(folder, *arguments, **options):
    """The JSON of `qrhead rank` with the tiny model."""
    result = invoke("rank", *arguments, "--model", folder, "--heads", "1-0,2-1", "--device", "cpu", "--json", **options)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def retriever(folder):
    return QRRetriever.from_pretrained(folder, heads=[(1, 0), (2, 1)], device="cpu")


@pytest.mark.parametrize("mode", MODES)
def test_json_is_the_ranking_of_the_library(folder, texts, mode):
    result = ranked(folder, QUERY, texts, "--mode", mode)
    expected = QRRetriever.from_pretrained(folder, heads=[(1, 0), (2, 1)], device="cpu", mode=mode).rank(QUERY, TEXTS)
    assert [entry["index"] for entry in result["documents"]] == [entry.index for entry in expected]
    assert [entry["score"] for entry in result["documents"]] == pytest.approx([entry.score for entry in expected])
    assert [entry["text"] for entry in result["documents"]] == [entry.passage.text for entry in expected]
    assert result["mode"] == mode
    assert result["heads"] == [[1, 0], [2, 1]]


def test_lines_are_those_of_the_file_although_blank_ones_are_no_documents(folder, texts):
    result = ranked(folder, QUERY, texts)
    assert {entry["line"]: entry["text"] for entry in result["documents"]} == dict(
        zip([1, 3, 4, 5], TEXTS, strict=True)
    )


def test_jsonl_keeps_title_id_and_the_rest_as_metadata(folder, records, retriever):
    documents = ranked(folder, QUERY, records)["documents"]
    passages = [Passage(text=text, title=f"Day {n}") for n, text in enumerate(TEXTS)]
    assert [entry["index"] for entry in documents] == [entry.index for entry in retriever.rank(QUERY, passages)]
    for entry in documents:
        assert (entry["title"], entry["id"]) == (f"Day {entry['index']}", str(entry["index"]))
        assert entry["metadata"] == {"page": entry["index"] * 10}


def test_options_reach_the_ranking(folder, texts, retriever):
    every = retriever.rank(QUERY, TEXTS)
    assert [entry["index"] for entry in ranked(folder, QUERY, texts, "--top-n", "2")["documents"]] == [
        entry.index for entry in every[:2]
    ]
    original = ranked(folder, QUERY, texts, "--top-n", "3", "--order", "original")["documents"]
    assert [entry["index"] for entry in original] == sorted(entry.index for entry in every[:3])
    budget = ranked(folder, QUERY, texts, "--max-tokens", "1")["documents"]
    assert [entry["index"] for entry in budget] == [every[0].index]
    assert len(ranked(folder, QUERY, texts, "--min-share", "1")["documents"]) == 1


def test_layout_and_instruction_reach_the_prompt(folder, texts):
    def scores(**options):
        retriever = QRRetriever.from_pretrained(folder, heads=[(1, 0), (2, 1)], device="cpu", **options)
        return pytest.approx([entry.score for entry in retriever.rank(QUERY, TEXTS)])

    plain = [entry["score"] for entry in ranked(folder, QUERY, texts)["documents"]]
    turned = [entry["score"] for entry in ranked(folder, QUERY, texts, "--layout", "reversed")["documents"]]
    instructed = [
        entry["score"] for entry in ranked(folder, QUERY, texts, "--instruction", "Find the ship.")["documents"]
    ]
    assert plain == scores()
    assert turned == scores(layout="reversed")
    assert instructed == scores(instruction="Find the ship.")
    assert plain != turned
    assert plain != instructed


@pytest.mark.parametrize("arguments", [(), ("--format", "txt")])
def test_stdin_is_text_with_a_document_a_line(folder, arguments):
    result = ranked(folder, QUERY, "-", *arguments, stdin="\n".join(TEXTS))
    assert sorted(entry["text"] for entry in result["documents"]) == sorted(TEXTS)


@pytest.mark.parametrize("name", ["chunks.json", "chunks.jsonl"])
def test_a_json_array_of_passages_is_ranked(folder, tmp_path, name):
    (tmp_path / name).write_text(json.dumps([{"text": text} for text in TEXTS], indent=1), encoding="utf-8")
    documents = ranked(folder, QUERY, str(tmp_path / name))["documents"]
    assert {(entry["line"], entry["text"]) for entry in documents} == {
        (2 + 3 * i, text) for i, text in enumerate(TEXTS)
    }


def test_stdin_takes_json_lines(folder):
    result = ranked(
        folder, QUERY, "-", "--format", "jsonl", stdin='{"text": "a\\u2028b"}\r\n\n{"text": "فجر 🚢", "id": "x"}'
    )
    assert {(entry["line"], entry["text"], entry.get("id")) for entry in result["documents"]} == {
        (1, "a\u2028b", None),
        (3, "فجر 🚢", "x"),
    }


def test_pruned_json_has_the_kept_ranges_and_the_whole_text(folder, records):
    for options in (("--prune", "1"), ("--prune-tokens", "60"), ("--prune", "0.5", "--prune-tokens", "60")):
        documents = ranked(folder, QUERY, records, *options)["documents"]
        assert {entry["text"] for entry in documents} <= set(TEXTS)
        for entry in documents:
            assert "".join(entry["text"][start:end] for start, end in entry["kept"]) in entry["pruned"]
    assert "kept" not in ranked(folder, QUERY, records)["documents"][0]


def test_pruned_texts_are_printed_whole(folder, tmp_path):
    file = tmp_path / "long.txt"
    file.write_text("Forty ships passed. " * 30 + "The lamp burns oil \x1b[31m.\n", encoding="utf-8")
    arguments = ("rank", QUERY, str(file), "--model", folder, "--heads", "1-0", "--device", "cpu")
    plain, pruned = invoke(*arguments), invoke(*arguments, "--prune-tokens", "2000")
    assert plain.exit_code == pruned.exit_code == 0
    assert pruned.stdout.count("Forty ships passed.") > plain.stdout.count("Forty ships passed.") + 20
    assert "\x1b" not in pruned.stdout


@pytest.mark.parametrize("option", [("--prune", "2"), ("--prune", "0"), ("--prune-tokens", "0")])
def test_a_prune_out_of_range_is_refused_in_a_line(folder, texts, option):
    result = invoke("rank", QUERY, texts, "--model", folder, *option)
    assert result.exit_code == 2
    assert "expected a" in result.stderr
    assert "Traceback" not in result.stderr


def test_explained_json_has_every_token_and_they_add_up(folder, records):
    for entry in ranked(folder, QUERY, records, "--explain")["documents"]:
        assert sum(token["contribution"] for token in entry["tokens"]) == pytest.approx(entry["score"], abs=1e-6)
        for token in entry["tokens"]:
            whole = {"text": entry["text"], "title": entry["title"]}.get(token["part"])
            assert whole is None or whole[token["start"] : token["end"]] == token["text"]


def test_the_table_has_the_lines_in_rank_order(folder, records, retriever):
    result = invoke("rank", QUERY, records, "--model", folder, "--heads", "1-0,2-1", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    header, *rows = result.stdout.splitlines()
    passages = [Passage(text=text, title=f"Day {n}") for n, text in enumerate(TEXTS)]
    expected = retriever.rank(QUERY, passages)
    assert header.split() == ["line", "score", "id", "document"]
    assert [row.split()[:3] for row in rows] == [
        [str(entry.index + 1), f"{entry.score:.4f}", str(entry.index)] for entry in expected
    ]
    assert [row.split(maxsplit=3)[3].strip() for row in rows] == [
        f"Day {entry.index}: {entry.passage.text}" for entry in expected
    ]


def test_text_in_square_brackets_is_shown_as_it_is(folder):
    arguments = ("rank", QUERY, "-", "--model", folder, "--heads", "1-0", "--device", "cpu", "--explain")
    result = invoke(*arguments, stdin="[red]a ship[/red]\n[/nothing] here\n")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("[red]a ship[/red]") == 2
    assert result.stdout.count("[/nothing] here") == 2


def test_nothing_in_a_document_steers_the_terminal(folder):
    arguments = ("rank", QUERY, "-", "--format", "jsonl", "--model", folder, "--heads", "1-0", "--device", "cpu")
    document = {"text": "a \x1b[2Jship\r\x07", "title": "\x1b]0;title\x07", "id": "\x1b[31m1"}
    result = invoke(*arguments, "--explain", stdin=json.dumps(document) + "\n")
    assert result.exit_code == 0, result.stderr
    assert "a ␛[2Jship" in result.stdout
    assert not set(result.stdout) & set(map(chr, range(32))) - {"\n"}


def test_explain_shows_the_strongest_tokens_of_each_document(folder, texts, retriever):
    arguments = ("rank", QUERY, texts, "--model", folder, "--heads", "1-0,2-1", "--device", "cpu", "--explain")
    result = invoke(*arguments, columns="400")
    assert result.exit_code == 0, result.stderr
    for passage in retriever.rank(QUERY, TEXTS).explain().passages:
        assert strongest_tokens(passage) in result.stdout


def test_a_list_longer_than_the_context_is_ranked_with_one_line_of_warning(folder):
    arguments = ("rank", QUERY, "-", "--model", folder, "--heads", "1-0", "--device", "cpu", "--json")
    result = invoke(*arguments, stdin="\n".join(f"{n} {TEXTS[n % 4]}" for n in range(60)))
    assert result.exit_code == 0
    assert json.loads(result.stdout)["windowed"] is True
    assert [line.startswith("qrhead: warning: 60 documents") for line in result.stderr.splitlines()] == [True]


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        ((QUERY, "nowhere.txt"), None, "nowhere.txt: No such file"),
        ((QUERY, "log.pdf"), None, "expected .txt or .jsonl, or say --format"),
        ((" ", "-"), "a ship", "query is blank"),
        ((QUERY, "-"), "\n \n", "stdin has no documents"),
        ((QUERY, "-"), b"a ship\n\xff", "stdin:2: not UTF-8"),
        ((QUERY, "-", "--format", "jsonl"), '{"text": "a"}\n\n{"text": ', "stdin:3: not JSON"),
        ((QUERY, "-", "--format", "jsonl"), "[]", "stdin:1: found a JSON list; expected an object"),
        ((QUERY, "-", "--format", "jsonl"), '{"body": "a"}', "stdin:1: text is None; expected a string"),
        ((QUERY, "-", "--format", "jsonl"), '{"text": "a", "title": 3}', "stdin:1: title is 3; expected a string"),
        ((QUERY, "-", "--format", "jsonl"), '{"text": "a", "id": true}', "stdin:1: id is True; expected a string"),
        (
            (QUERY, "-", "--format", "jsonl"),
            '{"text": "a", "metadata": 1}',
            "stdin:1: metadata is 1; expected an object",
        ),
        ((QUERY, "-", "--top-n", "0"), "a ship", "top_n=0 keeps nothing"),
        ((QUERY, "-", "--min-share", "1.5"), "a ship", "min_share=1.5 is not a share"),
        ((QUERY, "-", "--max-tokens", "-3"), "a ship", "max_tokens=-3 keeps nothing"),
        ((QUERY, "-", "--dtype", "float12"), "a ship", "dtype 'float12' is unknown"),
        ((QUERY, "-", "--device", "abacus"), "a ship", "device 'abacus' cannot be used here"),
        ((QUERY, "-", "--heads", "9-0"), "a ship", "head (9, 0) is outside"),
        ((QUERY, "-", "--heads", "nowhere.json"), "a ship", "nowhere.json: No such file"),
        ((QUERY, "-", "--heads", "nq"), "a ship", "no head set is shipped for"),
        ((QUERY, "-", "--instruction", ""), "a ship", "at least 1 character"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(folder, arguments, stdin, message):
    result = invoke("rank", *arguments, "--model", folder, stdin=stdin)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.startswith("qrhead: ")
    assert result.stderr.count("\n") == 1


def test_a_model_that_is_not_there_is_named(tmp_path):
    missing = str(tmp_path / "no-model")
    result = invoke("rank", QUERY, "-", "--model", missing, "--heads", "1-0", stdin="a ship")
    assert result.exit_code == 2
    assert missing in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("option", [("--mode", "sideways"), ("--order", "up"), ("--layout", "x"), ("--format", "csv")])
def test_an_unknown_choice_is_refused_with_those_there_are(option):
    result = invoke("rank", QUERY, "-", *option, stdin="a ship")
    assert result.exit_code == 2
    assert f"Invalid value for '{option[0]}'" in result.stderr


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch, texts):
    def broken(*_, **__):
        raise KeyError("a fault")

    monkeypatch.setattr("qrhead_rag.cli.options.ModelOptions.load", broken)
    result = invoke("rank", QUERY, texts)
    assert isinstance(result.exception, KeyError)


def test_heads_are_pairs_or_names():
    assert parse_heads("17-3,18-6") == [(17, 3), (18, 6)]
    assert parse_heads("2-11") == [(2, 11)]
    assert parse_heads("nq-contrastive") == "nq-contrastive"
    assert parse_heads(None) is None


def test_heads_are_listed_whole_as_json():
    result = invoke("heads", "--json")
    assert result.exit_code == 0
    assert tuple(HeadSet.model_validate(entry) for entry in json.loads(result.stdout)) == shipped_head_sets()


def test_heads_are_filtered_by_model():
    result = invoke("heads", "--model", "LLAMA-3.2", columns="80")
    rows = [line.split() for line in result.stdout.splitlines()[1:-1]]
    expected = [heads for heads in shipped_head_sets() if "Llama-3.2" in heads.model]
    assert [(row[0], row[1], int(row[-1])) for row in rows] == [
        (heads.model, heads.name, len(heads.heads)) for heads in expected
    ]
    marks = ["**" if heads.recommended else "*" if heads.default else "" for heads in expected]
    assert [("**" if "**" in row else "*" if "*" in row else "") for row in rows] == marks
    assert "**" in marks


def test_a_row_of_heads_is_whole_at_80_columns():
    lines = invoke("heads", columns="80").stdout.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == [heads.model for heads in shipped_head_sets()]


def test_a_model_without_heads_is_told_how_to_find_them():
    result = invoke("heads", "--model", "nobody/nothing")
    assert result.exit_code == 2
    assert "qrhead detect --model nobody/nothing" in result.stderr


@pytest.fixture(scope="module")
def handbook():
    return load_handbook()


def test_the_handbook_answers_its_questions(handbook):
    passages, questions = handbook
    ids = [passage.id for passage in passages]
    assert len(set(ids)) == len(passages) >= 30
    assert all(question.relevant and question.relevant <= set(ids) for question in questions)


def test_the_demo_compares_what_each_method_ranks_alone(handbook, folder):
    passages, questions = handbook[0][:6], [q for q in handbook[1] if q.relevant & {p.id for p in handbook[0][:6]}]
    retriever = QRRetriever.from_pretrained(folder, heads=[(1, 0), (2, 1)], device="cpu", mode="independent")
    comparisons = compare(retriever, passages, questions)
    assert [comparison.question for comparison in comparisons] == questions
    assert len(comparisons) >= 3
    for comparison in comparisons:
        query = comparison.question.query
        alone = retriever.rank(query, passages)
        assert [entry.index for entry in comparison.ranking] == [entry.index for entry in alone]
        words = BM25([passage.content for passage in passages]).best(query, len(passages))
        assert comparison.bm25 == tuple(passages[index] for index in words)
        for rank, order in zip(comparison.ranks, (words, [entry.index for entry in alone]), strict=True):
            relevant = [passages[index].id in comparison.question.relevant for index in order]
            assert relevant.index(True) == rank - 1


def made(words: int, heads: int) -> Comparison:
    """A comparison in which the right passage of ten stands at these places."""
    wrong = [Passage(text=f"passage {n}", id=str(n)) for n in range(9)]
    right = Passage(text="the right one", id="right")
    bm25 = [*wrong[: words - 1], right, *wrong[words - 1 :]]
    order = [*wrong[: heads - 1], right, *wrong[heads - 1 :]]
    ranking = Ranking("q", tuple(RankedPassage(n, 0.0, passage) for n, passage in enumerate(order)), "late")
    return Comparison(Question(f"{words} {heads}", frozenset({"right"})), tuple(bm25), ranking)


def test_the_demo_counts_all_questions():
    lines = summary([made(1, 2), made(5, 1), made(6, 1), made(10, 4)]).splitlines()
    assert lines == [
        "BM25   right passage first: 1 of 4; among the first 5: 2; average place: 5.5",
        "QRHead right passage first: 2 of 4; among the first 5: 4; average place: 2.0",
    ]


def test_the_demo_shows_the_greatest_gains_and_the_greatest_loss():
    chosen = select_comparisons([made(2, 1), made(10, 1), made(1, 9), made(9, 2), made(1, 2), made(5, 1)])
    assert [comparison.question.query for comparison in chosen] == ["10 1", "9 2", "5 1", "1 9"]
    assert len(select_comparisons([made(2, 1)])) == 1


def test_the_demo_asks_ones_own_question(folder):
    question = "Who pays for [a bed] in Hamnavik?"
    arguments = ("demo", "--question", question, "--mode", "late")
    result = invoke(*arguments, "--model", folder, "--heads", "1-0", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert question in result.stdout
    assert "right passage" not in result.stdout
    passages = load_handbook()[0]
    best = passages[BM25([passage.content for passage in passages]).best(question, 1)[0]]
    assert f"1  {best.title}" in result.stdout


@pytest.mark.slow
def test_the_demo_runs_whole(folder, handbook):
    result = invoke("demo", "--mode", "late", "--model", folder, "--heads", "1-0", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    passages, questions = handbook
    bm25 = BM25([passage.content for passage in passages])
    first = sum(passages[bm25.best(question.query, 1)[0]].id in question.relevant for question in questions)
    assert f"BM25   right passage first: {first} of {len(questions)}" in result.stdout
    assert result.stdout.count("What earned QRHead's first its score") == 4


def test_the_demo_says_where_no_word_is_shared(folder, handbook):
    passages, _ = handbook
    retriever = QRRetriever.from_pretrained(folder, heads=[(1, 0)], mode="late", device="cpu")
    with pytest.warns(UserWarning, match=r"BM25 scores every document 0 for 1 of 2 queries \(the first: '渡轮'\)"):
        compare(retriever, passages[:2], [Question("渡轮"), Question(passages[0].text[:40])])


@pytest.mark.parametrize("question", ["", "  "])
def test_the_demo_refuses_a_blank_question(question):
    result = invoke("demo", "--question", question)
    assert result.exit_code == 2
    assert "query is blank" in result.stderr


def test_the_demo_without_its_extra_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    result = invoke("demo")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "qrhead: bm25s is missing; install it with: pip install 'qrhead-rag[eval]'\n"


def test_the_embedded_model_finds_the_passage_whose_words_differ(embedded):
    passages, questions = load_handbook()
    wanted = next(question for question in questions if question.query.startswith("The barge master"))
    candidates = [passage for passage in passages if passage.id in wanted.relevant] + passages[10:15]
    retriever = QRRetriever(embedded.model, embedded.tokenizer, mode="late", model_name=embedded.model_name)
    assert retriever.rank(wanted.query, candidates)[0].passage.id in wanted.relevant


def test_version_and_help():
    assert invoke("--version").stdout == f"qrhead {__version__}\n"
    listed = invoke("--help").stdout
    assert all(f"  {command} " in listed for command in ("rank", "heads", "demo"))
    for option in ("--top-n", "--min-share", "--max-tokens", "--explain", "--json", "--instruction", "--layout"):
        assert option in invoke("rank", "--help").stdout


def test_the_command_runs_as_a_module():
    command = [sys.executable, "-m", "qrhead_rag.cli", "--version"]
    assert subprocess.run(command, capture_output=True, text=True).stdout == f"qrhead {__version__}\n"


def test_commands_share_the_declaration_of_an_option():
    helps = {}
    for command in typer.main.get_command(app).commands.values():
        for option in command.params:
            helps.setdefault(option.name, set()).add(getattr(option, "help", None))
    differing = {name for name, declared in helps.items() if len(declared) > 1}
    assert differing == {"data", "file", "format", "model", "order", "out"}  # these mean another thing to each command


@pytest.mark.embedded
def test_the_installed_command_ranks_with_the_embedded_model(tmp_path):
    texts = tmp_path / "station.txt"
    texts.write_text("The mast was painted in May.\nThe ferry leaves at eight.\nBears come to the bins.\n")
    script = Path(sys.executable).with_name("qrhead")
    arguments = ["rank", "When does the boat go?", str(texts), "--json", "--device", "cpu"]
    result = subprocess.run([script, *arguments], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    ranking = json.loads(result.stdout)
    assert ranking["documents"][0]["line"] == 2
    recommended = next(heads for heads in shipped_head_sets() if heads.model == ranking["model"] and heads.recommended)
    assert (ranking["mode"], ranking["heads"]) == ("late", [list(head) for head in recommended.heads])


def test_colours_reach_a_terminal(folder):
    console = Console(force_terminal=True, color_system="truecolor", width=60)
    tokens = (TokenContribution("a ship", "text", 0, 6, 1.0),)
    with console.capture() as captured:
        console.print(shade_passage(ExplainedPassage(0, 1.0, Passage(text="a ship"), tokens)))
    assert "48;2;0;114;178" in captured.get()


def test_json_holds_text_that_is_no_unicode(folder, tmp_path):
    path = tmp_path / "odd.jsonl"
    path.write_text('{"text": "half a pair \\ud800 of signs"}\n{"text": "A ship passed."}\n', encoding="utf-8")
    texts = [entry["text"] for entry in ranked(folder, QUERY, str(path))["documents"]]
    assert sorted(texts) == ["A ship passed.", "half a pair \ud800 of signs"]


def test_how_long_lists_and_documents_are_read(folder, tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("\n".join(["A ship passed the lighthouse. " * 12] * 6), encoding="utf-8")
    arguments = "rank", QUERY, str(path), "--model", folder, "--heads", "1-0,2-1", "--device", "cpu"
    assert "in sliding windows of 2, moved by 1" in invoke(*arguments, "--window", "2").stderr
    assert "greater than or equal to 16" in invoke(*arguments, "--piece-tokens", "3", "--mode", "late").stderr
