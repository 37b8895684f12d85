"""Detection on a tiny model with hand-made heads, criteria against sums by hand, resuming, curves, the copying heads."""

import inspect
import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from qrhead_rag import HeadSet, QRRetriever
from qrhead_rag.cli.detect import detect as detect_command
from qrhead_rag.core.heads import ModelShape
from qrhead_rag.core.passage import Passage
from qrhead_rag.core.prompt import Span
from qrhead_rag.datasets.examples import LabelledExample
from qrhead_rag.datasets.load import ordered
from qrhead_rag.detect.choosing import (
    CRITERIA,
    assign_folds,
    best_heads,
    contrastive,
    group_weights,
    head_values,
    mass,
    set_quality,
    smallest_as_good,
    stability,
)
from qrhead_rag.detect.copying import Needle, copied_share, copying_scores, insert_needle, load_haystack, load_needles
from qrhead_rag.detect.detection import detect
from qrhead_rag.detect.plot import curves, head_map, save_plots
from qrhead_rag.detect.recording import RecordedExample, Recording, example_digest, record, settings_digest
from qrhead_rag.detect.report import DetectionOptions
from qrhead_rag.evaluate.metrics import ndcg_of_scores
from qrhead_rag.evaluate.writer import Writer
from qrhead_rag.ranking.per_passage import PerPassage
from tests.helpers.modes import MODES
from tests.helpers.tiny import tiny_model, tiny_tokenizer

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "reference_scores.json").read_text(encoding="utf-8"))
WORDS = ["[UNK]", "which", "marked", "stone", "river", "cloud", "bread", "glass", "ask", "zork", "<end>"]
FINDS, COPIES, SHAPE = (1, 2), (2, 1), ModelShape("llama", 3, 4)


def hand_made() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Two heads of twelve are made by hand: from `which` to `marked`, and from `ask` to `zork`; `zork` follows `ask`."""
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=64,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=512,
        rope_theta=1e12,
        eos_token_id=WORDS.index("<end>"),
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.02)
        meanings = torch.linalg.qr(torch.randn(64, 64)).Q[: len(WORDS)]  # (words, 64), orthonormal
        model.model.embed_tokens.weight.copy_(meanings)
        for (layer, head), asks, answers in ((FINDS, "which", "marked"), (COPIES, "ask", "zork")):
            attention = model.model.layers[layer].self_attn
            first = 16 * head + 7  # the slowest rotation, so that distance does not matter
            for projection, word, strength in ((attention.q_proj, asks, 4.0), (attention.k_proj, answers, 2.0)):
                projection.weight[16 * head : 16 * head + 16] = 0
                projection.weight[first] = strength * meanings[WORDS.index(word)]
        follows = {"zork": "ask", "<end>": "zork"}
        for word, before in follows.items():
            model.lm_head.weight[WORDS.index(word)] = meanings[WORDS.index(before)]
    vocabulary = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    vocabulary.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=vocabulary, unk_token="[UNK]", eos_token="<end>", pad_token="[UNK]"
    )
    return model, tokenizer


def labelled(number):
    words = ["stone", "river", "cloud", "bread", "glass"]
    texts = [f"{words[(number + i) % 5]} and {words[(number + 2 * i) % 5]}" for i in range(6)]
    relevant = number % 6
    texts[relevant] += " marked"
    return LabelledExample(
        id=f"e{number}",
        query="which one",
        documents=tuple(Passage(text=text) for text in texts),
        relevant=(relevant,),
    )


@pytest.fixture(scope="module")
def retriever():
    model, tokenizer = hand_made()
    return QRRetriever(model, tokenizer, heads="all", model_name="hand-made")


@pytest.fixture(scope="module")
def recording(retriever, tmp_path_factory):
    examples = [ordered(labelled(number), "shuffled") for number in range(12)]
    return record(retriever, examples, tmp_path_factory.mktemp("scores"))


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.slow
def test_every_criterion_finds_the_hand_made_head_in_every_mode(criterion, mode, tmp_path):
    model, tokenizer = hand_made()
    retriever = QRRetriever(model, tokenizer, heads="all", mode=mode, model_name="hand-made")
    recorded_lists = record(retriever, [labelled(number) for number in range(6)], tmp_path)
    detection = detect(
        {"marks": recorded_lists},
        "hand-made",
        retriever.shape,
        mode,
        DetectionOptions(criterion=criterion, num_heads=1, folds=3),
    )
    assert detection.heads == (FINDS,)
    assert detection.mode == mode
    assert detection.quality[criterion].mean == pytest.approx(1.0)
    assert detection.quality["random"].mean < 0.9
    assert detection.stability.frequency == (1.0,)


def test_the_command_has_every_criterion():
    """It starts without torch, so it names them itself."""
    annotation = inspect.signature(detect_command).parameters["criterion"].annotation
    criteria, none = get_args(get_args(annotation)[0])
    assert set(get_args(criteria)) == set(CRITERIA)
    assert none is type(None)


def test_report_head_set_and_controls(recording, retriever, tmp_path):
    detection = detect({"marks": recording}, "hand-made", SHAPE, "listwise")
    assert len(detection.chosen) == 1  # one head is as good as any number
    assert detection.data[0].ids == tuple(f"e{number}" for number in range(12))
    assert detection.data[0].num_documents == (6, 6)
    assert detection.quality["contrastive"].mean > detection.quality["random"].mean
    assert detection.by_depth["ndcg"].x == (0, 1, 2)
    before, with_it, after = (quality.mean for quality in detection.by_depth["ndcg"].quality)
    assert before < with_it == after == pytest.approx(1.0)
    assert detection.overlap == {criterion: 1.0 for criterion in CRITERIA if criterion != "contrastive"}
    written = json.loads(detection.to_json())
    assert written["values"]["contrastive"][1][2] == pytest.approx(detection.chosen[0].value, abs=1e-6)
    heads = detection.head_set("marks", note="by hand")
    heads.save(tmp_path / "heads.json")
    again = HeadSet.load(tmp_path / "heads.json")
    assert again == heads
    assert (again.heads, again.criterion, again.task, again.num_examples) == ((FINDS,), "contrastive", "marks", 12)
    ranker = QRRetriever(retriever.model, retriever.tokenizer, heads=again, model_name="hand-made")
    example = labelled(3)
    assert ranker.rank(example.query, example.documents)[0].index == example.relevant[0]


def test_max_layer_keeps_heads_below(recording):
    shallow = DetectionOptions(max_layer=0, num_heads=2)
    detection = detect({"marks": recording}, "hand-made", SHAPE, "listwise", shallow)
    assert {layer for layer, _ in detection.heads} == {0}
    with pytest.raises(ValueError, match="num_heads=5: expected 1 to 4"):
        detect({"marks": recording}, "hand-made", SHAPE, "listwise", DetectionOptions(max_layer=0, num_heads=5))


def test_an_interrupted_recording_goes_on_where_it_stopped(retriever, tmp_path, monkeypatch):
    examples = [labelled(number) for number in range(4)]
    whole = [recorded.scores for recorded in record(retriever, examples, tmp_path / "whole")]
    run, asked = retriever.head_scores, []

    def interrupted(query, documents):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(query)
        return run(query, documents)

    monkeypatch.setattr(retriever, "head_scores", interrupted)
    with pytest.raises(KeyboardInterrupt):
        record(retriever, examples, tmp_path / "part")
    assert len(list((tmp_path / "part").iterdir())) == 2
    next((tmp_path / "part").iterdir()).write_bytes(b"cut off")
    asked.clear()
    monkeypatch.setattr(retriever, "head_scores", lambda query, documents: asked.append(query) or run(query, documents))
    calls = []
    resumed = record(retriever, examples, tmp_path / "part", lambda *call: calls.append(call))
    assert len(asked) == 3
    assert calls == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    for recorded, expected in zip(resumed, whole, strict=True):
        torch.testing.assert_close(recorded.scores, expected)


def test_files_are_told_apart_by_everything_the_scores_depend_on(retriever, monkeypatch):
    model, tokenizer = retriever.model, retriever.tokenizer
    named = {"heads": "all", "model_name": "hand-made"}
    settings = settings_digest(retriever)
    assert settings_digest(QRRetriever(model, tokenizer, **named)) == settings
    for options in ({"mode": "late"}, {"layout": "reversed"}, {"instruction": "Find it."}):
        assert settings_digest(QRRetriever(model, tokenizer, **named, **options)) != settings
    late = QRRetriever(model, tokenizer, **named, mode="late")
    before = settings_digest(late)
    monkeypatch.setattr(PerPassage, "READING_VERSION", 1)
    assert settings_digest(late) != before
    assert settings_digest(retriever) == settings
    tuned, _ = hand_made()
    with torch.no_grad():
        tuned.model.layers[0].mlp.up_proj.weight += 0.1
    assert settings_digest(QRRetriever(tuned, tokenizer, **named)) != settings
    example = labelled(1)
    digest = example_digest(example, settings)
    assert digest == example_digest(example.model_copy(update={"relevant": (0,), "id": "other"}), settings)
    assert digest != example_digest(ordered(example, "reversed"), settings)
    assert digest != example_digest(example.model_copy(update={"query": "which two"}), settings)


def test_recording_wants_every_head(tmp_path):
    few = QRRetriever(tiny_model(), tiny_tokenizer(), heads=[(1, 0)])
    with pytest.raises(ValueError, match='make it with heads="all"'):
        record(few, [labelled(0)], tmp_path)


def test_examples_that_cannot_tell_heads_apart_are_left_out(retriever, tmp_path):
    example = labelled(0)
    everything = example.model_copy(update={"relevant": tuple(range(6)), "id": "all"})
    nothing = example.model_copy(update={"relevant": (), "id": "none"})
    recording_ = record(retriever, [everything, *(labelled(number) for number in range(5)), nothing], tmp_path)
    detection = detect({"marks": recording_}, "hand-made", SHAPE, "listwise")
    assert detection.data[0].num_unusable == 2
    assert detection.data[0].ids == tuple(f"e{number}" for number in range(5))
    with pytest.raises(ValueError, match="1 examples with relevant and other documents; expected at least 5"):
        detect({"marks": Recording(recording_.examples[:2], recording_.files[:2])}, "hand-made", SHAPE, "listwise")
    useless = Recording(recording_.examples[-1:], recording_.files[-1:])
    with pytest.raises(ValueError, match="nothing has no example with both relevant and other documents"):
        detect({"marks": recording_, "nothing": useless}, "hand-made", SHAPE, "listwise")
    with pytest.raises(ValueError, match="scores of 12 heads were recorded, the model has 15"):
        detect({"marks": recording_}, "hand-made", ModelShape("llama", 3, 5), "listwise")


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_per_head_scores_are_those_of_the_published_code(case, embedded_all, tmp_path):
    documents = tuple(Passage(text=document["text"], title=document["title"]) for document in case["documents"])
    example = LabelledExample(query=case["query"], documents=documents, relevant=(0,))
    [recorded] = record(embedded_all, [example], tmp_path)
    expected = torch.tensor(case["per_head_scores"]).flatten(1).T  # (layers * heads, documents)
    torch.testing.assert_close(recorded.scores, expected, atol=1e-4, rtol=0)
    [file] = tmp_path.iterdir()
    assert torch.equal(load_file(file)["scores"], recorded.scores)
    # `mass` by hand, from the published numbers: the score of the first document, layer after layer
    by_hand = [score for layer in case["per_head_scores"][0] for score in layer]
    assert head_values(recorded, "mass").tolist() == pytest.approx(by_hand, abs=1e-4)


def test_criteria_by_hand():
    scores = torch.tensor([[3.0, 1.0, 0.0], [0.0, 0.0, 5.0]])
    assert mass(scores, [0, 2]).tolist() == [3.0, 5.0]
    expected = (torch.tensor([3.0, 0.0]).exp().sum() / torch.tensor([3.0, 1.0, 0.0]).exp().sum()).item()
    assert contrastive(scores, [0, 2], temperature=1.0)[0].item() == pytest.approx(expected)
    example = LabelledExample(query="q", documents=tuple(Passage(text=t) for t in "abc"), relevant=(2,))
    assert head_values(RecordedExample(example, scores), "ndcg").tolist() == pytest.approx([0.5, 1.0])
    assert ndcg_of_scores(scores, example).tolist() == pytest.approx([0.5, 1.0])


def test_data_sets_count_alike_and_folds_spread_them():
    groups = [0] * 8 + [1] * 2
    weights = group_weights(groups)
    assert weights[:8].sum().item() == pytest.approx(weights[8:].sum().item()) == pytest.approx(0.5)
    folds = assign_folds(groups, 2, seed=1)
    assert [folds[:8].count(fold) for fold in (0, 1)] == [4, 4]
    assert sorted(folds[8:]) == [0, 1]
    # head 0 is better on the many examples of one data set, head 1 on the few of the other, and by more
    values = torch.tensor([[0.6, 0.5, 0.9]] * 8 + [[0.0, 0.9, 0.9]] * 2)
    assert best_heads(values, weights, torch.tensor([True, True, False])) == [1, 0]


def test_set_quality_ranks_by_the_sum_of_the_heads():
    example = LabelledExample(query="q", documents=tuple(Passage(text=t) for t in "ab"), relevant=(1,))
    scores = torch.tensor([[1.0, 0.0], [0.0, 0.4], [0.0, 0.8]])
    quality = set_quality([RecordedExample(example, scores)] * 2, [0, 1], [[[0], [0, 1]], [[1], [0, 1, 2]]])
    worst = quality[0, 0].item()
    assert worst < 1
    torch.testing.assert_close(quality, torch.tensor([[worst, worst], [1.0, 1.0]]))


def test_a_larger_set_has_to_earn_its_heads():
    weights = torch.full((4,), 0.25)
    noise = torch.tensor([[0.5, 0.6, 0.5], [0.5, 0.5, 0.55], [0.5, 0.35, 0.5], [0.5, 0.6, 0.5]])
    assert smallest_as_good(noise, weights, [1, 2, 4]) == 1
    earned = torch.tensor([[0.5, 0.7, 0.7], [0.5, 0.6, 0.7], [0.4, 0.6, 0.5], [0.5, 0.6, 0.6]])
    assert smallest_as_good(earned, weights, [1, 2, 4]) == 2


def test_stability_of_a_clear_head_and_of_noise():
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(40, 50, generator=generator)
    clear = noise.clone()
    clear[:, [7, 30]] += 5
    eligible, groups = torch.ones(50, dtype=torch.bool), [0] * 20 + [1] * 20
    firm = stability(clear, groups, eligible, 2)
    assert (firm.halves, firm.resamples, firm.frequency) == (1.0, 1.0, (1.0, 1.0))
    loose = stability(noise, groups, eligible, 2)
    assert loose.halves < 0.5
    assert loose.chance == pytest.approx(2 / 50)
    assert stability(clear[:3], [0] * 3, eligible, 2).halves is None


@pytest.fixture(scope="module")
def writer():
    model, tokenizer = hand_made()
    return Writer(model, tokenizer, max_new_tokens=3)


NEEDLE = Needle("the secret word is zork today", "ask", "zork")


def test_copying_finds_the_head_that_attends_to_what_is_written(writer):
    haystack = "stone and river. cloud or bread. glass of river. " * 5
    copying = copying_scores(writer, needles=[NEEDLE], haystack=haystack, lengths=(20, 30), depths=(0.2, 0.8))
    assert (copying.num_found, copying.num_runs) == (2, 2)
    by_head = copying.scores.view(3, 4)
    assert by_head[COPIES] == 1.0
    assert by_head[FINDS] == 0.0
    assert copying.scores.mean() < 0.5


def test_copying_counts_only_needles_that_are_found(writer):
    lost = NEEDLE._replace(needle="the secret word is glass today", answer="glass")
    copying = copying_scores(writer, needles=[lost], haystack="stone river. cloud.", lengths=(4,))
    assert (copying.num_found, copying.num_runs) == (0, 1)
    assert not copying.scores.any()
    with pytest.raises(ValueError, match="'bread' is not part of the needle"):
        copying_scores(writer, needles=[NEEDLE._replace(answer="bread")], haystack="stone.", lengths=(1,))


def test_copied_share_equals_full_attention(embedded_all):
    """The tokens that each head attends to most, read row by row, against one pass that returns all attention."""
    from qrhead_rag.core.attention import HeadReader

    model = tiny_model(attn_implementation="eager")
    ids, generated = list(range(3, 23)), [5, 9, 9, 30]
    span = Span(2, 9)
    every = [(layer, head) for layer in range(4) for head in range(4)]
    with torch.no_grad():
        full = model(torch.tensor([ids + generated]), output_attentions=True).attentions
    attention = torch.cat([layer[0] for layer in full])  # (heads, tokens, tokens)
    expected = torch.zeros(16, span.end - span.start)
    for step, token in enumerate(generated):
        strongest = attention[:, len(ids) - 1 + step].argmax(dim=-1)
        for head, at in enumerate(strongest.tolist()):
            if span.start <= at < span.end and (ids + generated)[at] == token:
                expected[head, at - span.start] = 1
    share = copied_share(HeadReader(model, every), ids, generated, span)
    torch.testing.assert_close(share, expected.mean(dim=1))


def test_needles_come_with_the_package_and_hide_between_sentences(writer):
    needles = load_needles()
    assert len(needles) >= 10
    assert all(needle.answer in needle.needle and needle.needle not in load_haystack() for needle in needles)
    text = insert_needle(needles[0], writer, load_haystack(), 100, 0.5)
    before, after = text.split(needles[0].needle)
    assert before.endswith((". ", "? ", "! "))
    assert 0.3 < len(before) / len(before + after) < 0.8


def test_copying_overlap_is_reported(recording):
    copying = torch.zeros(12)
    copying[FINDS[0] * 4 + FINDS[1]] = 1
    detection = detect({"marks": recording}, "hand-made", SHAPE, "listwise", copying=copying)
    assert detection.overlap["copying"] == 1.0
    assert detection.values["copying"][1][2] == 1.0
    other = detect({"marks": recording}, "hand-made", SHAPE, "listwise", copying=1 - copying)
    assert other.overlap["copying"] == 0.0


@pytest.mark.slow
def test_pictures_show_the_numbers_of_the_report(recording, tmp_path):
    detection = detect({"marks": recording}, "hand-made", SHAPE, "listwise")
    figure = head_map(detection, "mass")
    image = figure.axes[0].images[0].get_array()
    assert image.tolist() == [list(row) for row in detection.values["mass"]]
    ringed = figure.axes[0].collections[0].get_offsets().tolist()
    assert ringed == [[head, layer] for layer, head in detection.heads]
    left, right = curves(detection).axes
    drawn = {line.get_label(): line for line in left.lines}
    assert drawn["mass"].get_ydata().tolist() == [q.mean for q in detection.by_num_heads["mass"].quality]
    assert right.lines[0].get_xdata().tolist() == list(detection.by_depth["contrastive"].x)
    paths = save_plots(detection, tmp_path / "pictures")
    assert {path.name for path in paths} == {f"head_map_{name}.png" for name in CRITERIA} | {"curves.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    with pytest.raises(ValueError, match="no values of 'copying'"):
        head_map(detection, "copying")


def test_what_no_recording_could_answer_is_refused_before_it():
    with pytest.raises(ValueError, match=r"num_heads=0 chooses none; expected 1 or more, or 'auto'"):
        DetectionOptions(num_heads=0)
    with pytest.raises(ValueError, match="num_heads=9: expected 1 to 8, which is what max_layer allows"):
        DetectionOptions(num_heads=9, max_layer=1).check_possible(20, SHAPE)
    with pytest.raises(ValueError, match="4 examples with relevant and other documents; expected at least 5"):
        DetectionOptions().check_possible(4, SHAPE)


def test_scores_under_another_context_length_are_recorded_anew():
    digests = {
        settings_digest(QRRetriever(tiny_model(), tiny_tokenizer(), heads=[(0, 0)], context_length=length))
        for length in (None, 200, 300)
    }
    assert len(digests) == 3
