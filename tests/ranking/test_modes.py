"""The three modes: what they keep serves again, and gives what running everything anew gives."""

import gc
import pickle
import random
import threading
import time
import warnings

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import qrhead_rag.core.attention
from qrhead_rag import Passage, QRRetriever
from qrhead_rag.ranking.cache import ByteCache
from qrhead_rag.ranking.encoded import EncodedPassages
from qrhead_rag.ranking.encoding import batch_tokens_of
from qrhead_rag.ranking.store import store_of
from tests.helpers.held import held_by
from tests.helpers.modes import MODES, PER_PASSAGE_MODES
from tests.helpers.tiny import FAMILIES, tiny_model, tiny_tokenizer

HEADS = [(1, 0), (1, 3), (2, 1), (2, 2)]
QUERY = "who counts the ships?"
DOCUMENTS = [
    "The keeper counts the ships that pass.",
    "Storms came twice. They broke the lamp. " * 8,
    Passage(title="Cat", text="A cat slept by the lamp."),
    "",
    "N/A",
    "The lighthouse is tall.",
]


def retriever(mode, family="llama", **options):
    changes = {"max_position_embeddings": 2048} | options.pop("changes", {})
    options = {"piece_tokens": 64, "key_dtype": "float32"} | options
    return QRRetriever(tiny_model(family, **changes), tiny_tokenizer(), heads=HEADS, mode=mode, **options)


def same(scores, wanted, tolerance=1e-5):
    torch.testing.assert_close(torch.tensor(scores), torch.tensor(wanted), atol=tolerance, rtol=0)


@pytest.mark.parametrize("mode", MODES)
def test_a_warm_list_gives_what_a_cold_one_gives(mode):
    warm, cold = retriever(mode), retriever(mode, cache_bytes=0)
    for query in (QUERY, "what broke?", QUERY):
        wanted = cold.score(query, DOCUMENTS)
        same(warm.score(query, DOCUMENTS), wanted)
        assert len(set(wanted)) > 3, "scores that are all alike prove nothing"
    assert len(store_of(cold).cache) == 0
    assert store_of(warm).cache.nbytes > 0


def test_a_warm_list_runs_only_the_query_part(monkeypatch):
    for mode in MODES:
        warm = retriever(mode)
        warm.score(QUERY, DOCUMENTS)
        monkeypatch.setattr(
            store_of(warm).context.reader, "prefill", lambda *_, **__: pytest.fail("documents were run again")
        )
        warm.score("what broke?", DOCUMENTS)
        monkeypatch.undo()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("split", [0, 1, 3, 5])
@pytest.mark.slow
def test_extend_in_any_split_equals_encoding_whole(mode, split):
    grown = retriever(mode, cache_bytes=0).encode(DOCUMENTS[:split])
    if split:
        grown.score(QUERY)
    grown.extend(DOCUMENTS[split:])
    same(grown.score(QUERY), retriever(mode).score(QUERY, DOCUMENTS))
    assert len(grown) == len(DOCUMENTS)


def test_extend_runs_only_what_follows_the_first_changed_token(monkeypatch):
    asked = retriever("listwise")
    encoded = asked.encode(DOCUMENTS[:2])
    run, prefill = [], store_of(asked).context.reader.prefill
    monkeypatch.setattr(
        store_of(asked).context.reader,
        "prefill",
        lambda ids, *rest, **more: run.append(ids.numel()) or prefill(ids, *rest, **more),
    )
    encoded.extend(["A cat."])
    encoded.score(QUERY)
    assert run == [pytest.approx(asked.count_tokens("[3] A cat.\n\n"), abs=3)]


@pytest.mark.parametrize("mode", MODES)
def test_remove_equals_a_list_without_it(mode):
    documents = [
        Passage(text=text, id=str(index)) for index, text in enumerate(["a ship", "a lamp", "a ship", "a cat"])
    ]
    encoded = retriever(mode).encode(documents)
    encoded.score(QUERY)
    assert encoded.remove(2) is documents[2]
    assert encoded.remove("1") is documents[1]
    same(encoded.score(QUERY), retriever(mode).score(QUERY, [documents[0], documents[3]]))
    with pytest.raises(KeyError, match="0 documents have the id 'none'"):
        encoded.remove("none")
    for index, left in ((7, 2), (0, 0)):
        with pytest.raises(IndexError, match=f"no document {index} in a list of {left}"):
            encoded.remove(index)
        encoded = retriever(mode).encode([])


@pytest.mark.parametrize("mode", MODES)
def test_extend_and_remove_from_many_threads_lose_nothing(mode):
    encoded = retriever(mode).encode(["The first."])
    threads = [threading.Thread(target=encoded.extend, args=([f"Ship {number}."],)) for number in range(8)]
    with encoded._context.lock:  # all wait, as for a query that is running
        for thread in threads:
            thread.start()
        time.sleep(0.1)
    for thread in threads:
        thread.join()
    assert sorted(passage.text for passage in encoded) == sorted(["The first.", *(f"Ship {n}." for n in range(8))])


@pytest.mark.parametrize("mode", MODES)
def test_progress_is_shown_only_where_it_is_asked_for(mode, capsys):
    retriever(mode).encode(DOCUMENTS)
    assert capsys.readouterr().err == ""
    retriever(mode).encode(DOCUMENTS, show_progress=True)
    assert "encoding: 100%" in capsys.readouterr().err


@pytest.mark.parametrize("mode", PER_PASSAGE_MODES)
def test_a_document_scores_the_same_in_every_order(mode):
    asked = retriever(mode, cache_bytes=0)
    wanted = asked.score(QUERY, DOCUMENTS)
    for seed in range(4):
        order = random.Random(seed).sample(range(len(DOCUMENTS)), len(DOCUMENTS))
        same(
            [score for _, score in sorted(zip(order, asked.score(QUERY, [DOCUMENTS[p] for p in order]), strict=True))],
            wanted,
        )


@pytest.mark.parametrize("mode", PER_PASSAGE_MODES)
def test_what_is_not_in_the_list_does_not_matter(mode):
    used, fresh = retriever(mode), retriever(mode)
    used.score(QUERY, ["something else entirely " * 20, *DOCUMENTS])
    same(used.score(QUERY, DOCUMENTS), fresh.score(QUERY, DOCUMENTS))


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("gpt_oss",)])
@pytest.mark.slow
def test_independent_equals_one_pass_under_one_mask(family):
    """The same attention pattern written as one 4-D mask over one sequence, in the model's own eager attention."""
    changes = {"sliding_window": 4096} if "sliding_window" in FAMILIES[family] else {}
    asked = retriever("independent", family, readout="published", changes=changes)
    encoder = store_of(asked).context
    texts = ["The keeper counts the ships.", "Storms came twice.", "A cat."]
    opening = encoder.tokenizer.opening(encoder.template)
    pieces = [encoder.tokenizer.passage(text)[0] for text in texts]
    scores = []
    for query in (QUERY, "N/A"):
        tail, read_from, _ = encoder.tokenizer.question(encoder.template, query)
        segments = [opening, *pieces, tail]
        ids = torch.tensor([[token for segment in segments for token in segment]])
        part = torch.arange(len(segments)).repeat_interleave(torch.tensor([len(segment) for segment in segments]))
        longest = max(len(piece) for piece in pieces)
        starts = [0, *[len(opening)] * len(pieces), len(opening) + longest]
        positions = torch.cat([start + torch.arange(len(s)) for start, s in zip(starts, segments, strict=True)])
        before = torch.arange(ids.numel())[:, None] >= torch.arange(ids.numel())[None]
        sees = (part[:, None] == part) | (part[None] == 0) | (part[:, None] == len(segments) - 1)
        mask = torch.where(before & sees, 0.0, torch.finfo(torch.float32).min)[None, None]
        kinds = set(getattr(asked.model.config, "layer_types", None) or [])
        asked.model.set_attn_implementation("eager")
        with torch.no_grad():
            attention = asked.model(
                ids,
                attention_mask=dict.fromkeys(kinds, mask) if len(kinds) > 1 else mask,
                position_ids=positions[None],
                output_attentions=True,
                use_cache=False,
            ).attentions
        asked.model.set_attn_implementation("sdpa" if family != "gemma2" else "eager")
        rows = (part == len(segments) - 1).nonzero()[read_from:, 0]
        read = torch.stack([attention[layer][0, head][rows] for layer, head in HEADS])  # (heads, rows, tokens)
        without_opening = read / (1 - read[..., : len(opening)].sum(dim=-1, keepdim=True))
        scores.append(without_opening.mean(dim=1).sum(dim=0))
    calibrated = scores[0][: len(opening) + sum(map(len, pieces))]
    calibrated = calibrated - scores[1][: len(calibrated)]
    wanted, start = [], len(opening)
    for piece in pieces:
        tokens = calibrated[start : start + len(piece)]
        wanted.append(tokens[tokens > tokens.mean() - 2 * tokens.std()].sum().item())
        start += len(piece)
    same(asked.score(QUERY, texts), wanted)


def test_late_reads_the_stored_keys_of_the_model():
    """One document, scored by hand from the plain model's queries and keys."""
    asked = retriever("late", readout="published")
    encoder, seen = store_of(asked).context, {}
    text = "The keeper counts the ships."
    opening, piece = encoder.tokenizer.opening(encoder.template), encoder.tokenizer.passage(text)[0]

    def keep(name):
        def attend(module, query, key, value, mask, **options):
            seen[name, module.layer_idx] = query, key
            return llama.eager_attention_forward(module, query, key, value, mask, **options)

        return attend

    from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
    from transformers.masking_utils import eager_mask
    from transformers.models.llama import modeling_llama as llama

    from qrhead_rag.core.model_view import cache_argument

    AttentionMaskInterface.register("watched", eager_mask)
    AttentionInterface.register("watched", lambda *args, **options: keep("document")(*args, **options))
    calibrated = []
    plain = tiny_model(max_position_embeddings=2048)
    plain.config._attn_implementation = "watched"
    with torch.no_grad():
        plain(torch.tensor([opening + piece]), use_cache=False)
        for query in (QUERY, "N/A"):
            tail, read_from, _ = encoder.tokenizer.question(encoder.template, query)
            AttentionInterface.register("watched", lambda *args, **options: keep("query")(*args, **options))
            start = len(opening) + len(piece)
            positions = torch.cat([torch.arange(len(opening)), start + torch.arange(len(tail))])[None]
            # with a cache the jump in positions is not taken for two packed sequences
            cache = {cache_argument(plain.model): DynamicCache()}
            plain(torch.tensor([opening + tail]), position_ids=positions, **cache)
            total = torch.zeros(len(piece))
            for layer, head in HEADS:
                queries, keys = (
                    tensor[0, head // (2 if number else 1)] for number, tensor in enumerate(seen["query", layer])
                )
                document = seen["document", layer][1][0, head // 2][len(opening) :]
                every = torch.cat([document, keys[len(opening) :]])  # the opening is hidden from the heads
                logits = queries[len(opening) :] @ every.T * 8**-0.5
                own = torch.ones(len(tail), len(tail)).tril().bool()
                logits[:, -len(tail) :].masked_fill_(~own, -torch.inf)
                weights = logits.softmax(-1)[read_from:]
                total += weights[:, : len(piece)].mean(0)
            calibrated.append(total)
    tokens = calibrated[0] - calibrated[1]
    same(asked.score(QUERY, [text]), [tokens[tokens > tokens.mean() - 2 * tokens.std()].sum().item()])


@pytest.mark.parametrize("mode", MODES)
def test_many_queries_in_one_pass_equal_one_by_one(mode):
    encoded = retriever(mode).encode(DOCUMENTS)
    queries = [QUERY, "what broke?", "where is the cat", "how tall is it"]
    together = encoded.rank_queries(queries, top_n=3)
    for query, ranking in zip(queries, together, strict=True):
        alone = encoded.rank(query, top_n=3)
        assert [ranked.index for ranked in ranking] == [ranked.index for ranked in alone]
        same([ranked.score for ranked in ranking], [ranked.score for ranked in alone])
    assert [ranking.query for ranking in encoded.rank_queries(query for query in queries)] == queries
    assert encoded.rank_queries([]) == []
    with pytest.raises(TypeError, match="one string"):
        encoded.rank_queries(QUERY)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.slow
def test_more_queries_than_one_pass_takes(mode, monkeypatch):
    """Attention of the rows to each other grows with the square of their number."""
    queries = [f"who counts ship {number}?" for number in range(7)]
    wanted = [retriever(mode, cache_bytes=0).score(query, DOCUMENTS) for query in queries]
    asked, passes = retriever(mode), []
    monkeypatch.setattr(qrhead_rag.core.attention, "_ROWS_AT_ONCE", 200)
    run = store_of(asked).context.reader._run
    monkeypatch.setattr(
        store_of(asked).context.reader, "_run", lambda now, ids, *rest: (passes.append(ids), run(now, ids, *rest))
    )
    encoded = asked.encode(DOCUMENTS)
    passes.clear()
    rankings = encoded.rank_queries(queries)
    assert len(passes) > 1
    assert all(ids.shape[1] <= 200 for ids in passes)
    for ranking, scores in zip(rankings, wanted, strict=True):
        same([ranked.score for ranked in sorted(ranking, key=lambda ranked: ranked.index)], scores)


@pytest.mark.parametrize("mode", MODES)
def test_explanations_sum_to_the_score_and_point_into_the_callers_text(mode):
    ranking = retriever(mode).rank(QUERY, DOCUMENTS)
    for explained in ranking.explain().passages:
        if explained.passage.content.strip():
            assert sum(token.contribution for token in explained.tokens) == pytest.approx(explained.score, abs=1e-5)
        for token in explained.tokens:
            whole = {"text": explained.passage.text, "title": explained.passage.title or ""}.get(token.part)
            assert whole is None or whole[token.start : token.end] == token.text


@pytest.mark.parametrize("mode", PER_PASSAGE_MODES)
def test_pieces_of_text_with_many_tokens_a_character_are_no_longer_than_others(mode):
    asked = retriever(mode, piece_tokens=64, changes={"max_position_embeddings": 512})
    rare = "\U00012000" * 120  # cuneiform: several tokens each
    assert asked.count_tokens(rare) > 400
    encoded = asked.encode([rare, "A ship passed."])
    lengths = [len(piece.offsets) for piece in encoded._list._passages[rare].pieces]
    assert len(lengths) > 5
    assert max(lengths) <= 64 + asked.count_tokens("[1] ") + 4
    encoded.rank(QUERY)


@pytest.mark.parametrize("mode", MODES)
def test_a_document_of_many_tokens_a_character_is_cut_like_any_other(mode):
    asked = retriever(mode, piece_tokens=None, changes={"max_position_embeddings": 512})
    with pytest.warns(UserWarning, match="only the beginning of document 0"):
        ranking = asked.rank(QUERY, [Passage(text="\U00012000" * 300, title="Rare")])
    assert ranking[0].truncated


def test_long_documents_are_read_in_pieces_to_their_end():
    text = " ".join(f"Sentence number {number} says nothing." for number in range(60))
    asked = retriever("late", piece_tokens=32)
    explained = asked.rank(QUERY, [text]).explain()[0]
    assert {token.end for token in explained.tokens if token.part == "text"} >= {len(text)}
    read = "".join(token.text for token in explained.tokens if token.part == "text")
    assert read.replace(" ", "") == text.replace(" ", "")
    ranges = store_of(asked).context.tokenizer.sentences(text, 32)
    assert all(text[end - 2 : end] == ". " for _, end in ranges[:-1])
    assert len(ranges) > 5


@pytest.mark.parametrize("mode", PER_PASSAGE_MODES)
@pytest.mark.slow
def test_a_list_longer_than_the_context(mode):
    asked = retriever(mode, changes={"max_position_embeddings": 256})
    documents = [f"Passage {number} speaks of ship {number}." for number in range(200)]
    ranking = asked.rank(QUERY, documents)
    assert len(ranking) == 200
    assert not ranking.windowed
    assert sorted(ranked.index for ranked in ranking) == list(range(200))


@pytest.mark.parametrize("family", ["mistral", "gpt_oss"])
def test_a_window_that_hides_documents_is_said(family):
    with pytest.raises(ValueError, match="window that hides part of the documents"):
        retriever("late", family).score(QUERY, DOCUMENTS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", PER_PASSAGE_MODES)
def test_half_precision(mode, dtype):
    asked = QRRetriever(
        tiny_model(dtype=dtype, max_position_embeddings=2048), tiny_tokenizer(), heads=HEADS, mode=mode, piece_tokens=64
    )
    same(asked.score(QUERY, DOCUMENTS), retriever(mode).score(QUERY, DOCUMENTS), tolerance=0.1)


def test_keys_in_float16_change_little():
    same(
        retriever("late", key_dtype="float16").score(QUERY, DOCUMENTS), retriever("late").score(QUERY, DOCUMENTS), 5e-3
    )


def test_save_and_load_are_exact(tmp_path):
    asked = retriever("late", key_dtype="float16")
    encoded = asked.encode(DOCUMENTS)
    path = tmp_path / "handbook.safetensors"
    encoded.save(path)
    loaded = EncodedPassages.load(path, retriever("late", key_dtype="float16"))
    assert list(loaded) == list(encoded)
    assert loaded.score(QUERY) == encoded.score(QUERY)
    loaded.extend(["One more ship."])
    same(loaded.score(QUERY), asked.score(QUERY, [*DOCUMENTS, "One more ship."]))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    empty = asked.encode([])
    empty.save(path)
    assert len(EncodedPassages.load(path, asked)) == 0


def test_a_list_of_a_model_with_other_weights_is_refused(tmp_path):
    path = tmp_path / "list.safetensors"
    retriever("late").encode(DOCUMENTS).save(path)
    other = retriever("late", changes={"seed": 1})
    with pytest.raises(ValueError, match="other weights than this one of the same name"):
        EncodedPassages.load(path, other)
    half = retriever("late", changes={"dtype": torch.bfloat16})
    same(EncodedPassages.load(path, half).score(QUERY), retriever("late").score(QUERY, DOCUMENTS), tolerance=0.1)


def test_other_weights_of_one_layer_are_refused_beside_larger_keys_of_another(tmp_path):
    path = tmp_path / "list.safetensors"
    asked, other = retriever("late"), retriever("late")
    with torch.no_grad():
        for one in (asked, other):
            one.model.model.layers[1].self_attn.k_proj.weight *= 5
        other.model.model.layers[2].self_attn.k_proj.weight.normal_(std=0.35)
    asked.encode(DOCUMENTS).save(path)
    with pytest.raises(ValueError, match="keys of layer 2 differ"):
        EncodedPassages.load(path, other)


@pytest.mark.parametrize("pieces", [None, 256])
def test_a_list_whose_documents_another_context_cuts_elsewhere_is_refused(tmp_path, pieces):
    path, documents = tmp_path / "list.safetensors", ["Storms came twice. They broke the lamp. " * 20, "A cat."]
    short = retriever("late", piece_tokens=pieces, context_length=220)
    if pieces is None:
        with pytest.warns(UserWarning, match="only the beginning of document 0"):
            encoded = short.encode(documents)
    else:
        encoded = short.encode(documents)
    encoded.save(path)
    with pytest.raises(ValueError, match=r"with longest_piece \d+, the retriever has longest_piece \d+"):
        EncodedPassages.load(path, retriever("late", piece_tokens=pieces, context_length=1500))
    with warnings.catch_warnings(record=True, action="always") as caught:
        loaded = EncodedPassages.load(path, short)
    assert len(caught) == len(encoded.truncated)
    assert loaded.truncated == encoded.truncated
    assert loaded.score(QUERY) == encoded.score(QUERY)


def test_what_cannot_be_loaded_is_refused_by_name(tmp_path):
    path = tmp_path / "list.safetensors"
    retriever("late").encode(DOCUMENTS).save(path)
    other = QRRetriever(tiny_model(max_position_embeddings=2048), tiny_tokenizer(), heads=[(0, 0)], mode="late")
    with pytest.raises(ValueError, match="heads"):
        EncodedPassages.load(path, other)
    with pytest.raises(ValueError, match="mode late, the retriever has mode independent"):
        EncodedPassages.load(path, retriever("independent"))
    with pytest.raises(ValueError, match="expected 'late'"):
        retriever("listwise").encode(DOCUMENTS).save(path)
    with pytest.raises(ValueError, match="expected 'late'"):
        EncodedPassages.load([], retriever("listwise"))
    with pytest.raises(FileNotFoundError):
        EncodedPassages.load(tmp_path / "none", retriever("late"))
    whole = path.read_bytes()
    for damaged in (whole[:100], whole[: len(whole) // 2], b"", b"\x80\x04pickle"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"list\.safetensors cannot be read"):
            EncodedPassages.load(path, retriever("late"))
    path.write_bytes(whole)
    save_file(load_file(path), path, {"format": "something else"})
    with pytest.raises(ValueError, match="its format is 'something else'"):
        EncodedPassages.load(path, retriever("late"))


@pytest.mark.parametrize("mode", MODES)
def test_nbytes_is_what_the_tensors_take(mode):
    encoded = retriever(mode).encode(DOCUMENTS)
    encoded.score(QUERY)
    assert encoded.nbytes == pytest.approx(held_by(encoded)[1], rel=0.02)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("indices", [[0, 1], [-1, -1, -1]])
@pytest.mark.slow
def test_what_is_removed_leaves_memory(mode, indices):
    encoded = retriever(mode).encode(DOCUMENTS)
    encoded.score(QUERY)
    for index in indices:
        encoded.remove(index)
        if mode != "listwise":  # which forgets at the next query
            assert encoded.nbytes == pytest.approx(held_by(encoded)[1], rel=0.02)
    encoded.score(QUERY)
    alone = retriever(mode).encode(list(encoded))
    alone.score(QUERY)
    assert encoded.nbytes == alone.nbytes == pytest.approx(held_by(encoded)[1], rel=0.02)


@pytest.mark.parametrize(
    ("mode", "before"),
    [(mode, before) for mode in PER_PASSAGE_MODES for before in ("extended", "alike")] + [("late", "loaded")],
)
def test_what_is_removed_leaves_memory_whatever_came_before(mode, before, tmp_path):
    asked = retriever(mode, cache_bytes=0)
    encoded = asked.encode(["A ship passed."] * 12 if before == "alike" else [f"Ship {n} passed." for n in range(12)])
    encoded.score(QUERY)
    if before == "extended":
        encoded.extend(["One more."])
    if before == "loaded":
        encoded.save(tmp_path / "list.safetensors")
        encoded = EncodedPassages.load(tmp_path / "list.safetensors", asked)
    for _ in range(11):
        encoded.remove(0)
    assert encoded.nbytes == pytest.approx(held_by(encoded)[1], rel=0.02)


@pytest.mark.parametrize("mode", MODES)
def test_a_pickled_ranking_grows_with_the_list_and_no_faster(mode):
    asked = retriever(mode)
    sizes = [
        len(pickle.dumps(asked.rank(QUERY, [f"Ship {index} passed." for index in range(number)])))
        for number in (10, 40)
    ]
    assert sizes[1] < 6 * sizes[0]


def test_a_callers_token_counter_may_use_the_model_in_another_thread():
    asked = retriever("late")

    def count(text):
        counts = []
        thread = threading.Thread(target=lambda: counts.append(asked.count_tokens(text)), daemon=True)
        thread.start()
        thread.join(120)
        assert counts, "the counter waits for the model while the ranking waits for the counter"
        return counts[0]

    by_caller = asked.encode(DOCUMENTS).rank(QUERY, max_tokens=30, token_counter=count)
    by_model = asked.encode(DOCUMENTS).rank(QUERY, max_tokens=30)
    assert [ranked.index for ranked in by_caller] == [ranked.index for ranked in by_model]
    assert 0 < len(by_caller) < len(DOCUMENTS)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.slow
def test_a_list_is_read_by_some_threads_while_others_change_it(mode):
    encoded = retriever(mode).encode(DOCUMENTS)
    bytes_held = encoded.nbytes  # the list never gets shorter than this
    assert bytes_held > 0
    done, failed = threading.Event(), []

    def change():
        while not done.is_set():
            encoded.extend(["One more.", "Two more."])
            encoded.score(QUERY)
            encoded.remove(len(DOCUMENTS))
            encoded.remove(-1)

    def read():
        try:
            for _ in range(60):
                assert bytes_held <= encoded.nbytes < 2 * bytes_held
                assert encoded.head_scores(QUERY).isfinite().all()
                assert len(DOCUMENTS) <= len(list(encoded)) <= len(DOCUMENTS) + 2
        except BaseException as error:
            failed.append(error)

    changing, reading = threading.Thread(target=change), [threading.Thread(target=read) for _ in range(2)]
    for thread in (changing, *reading):
        thread.start()
    for thread in reading:
        thread.join()
    done.set()
    changing.join()
    assert failed == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ask", [lambda encoded: encoded.nbytes, lambda encoded: encoded.head_scores(QUERY)])
def test_whoever_reads_a_list_waits_for_a_change_to_be_complete(mode, ask):
    encoded, results = retriever(mode).encode(DOCUMENTS), []
    thread = threading.Thread(target=lambda: results.append(ask(encoded)))
    with encoded._context.lock:
        thread.start()
        thread.join(0.1)
        assert results == []
    thread.join()
    assert len(results) == 1


@pytest.mark.parametrize("mode", MODES)
def test_blank_lists_take_no_place_in_the_cache(mode):
    for bound in (0, 10_000):
        asked = retriever(mode, cache_bytes=bound)
        for number in range(1, 30):
            assert asked.score(QUERY, [" " * number, ""]) == [0.0, 0.0]
        assert len(store_of(asked).cache) == 0


@pytest.mark.parametrize("mode", MODES)
def test_a_blank_list_has_a_ranking_however_long_the_query_is(mode):
    asked = retriever(mode, context_length=150)
    query = "which ships " * 100
    for documents in ([], ["", " \n"]):
        for whole in (asked, retriever(mode, context_length=150, piece_tokens=None)):
            assert [ranked.score for ranked in whole.rank(query, documents)] == [0.0] * len(documents)
    with pytest.raises(ValueError, match="shorter query"):
        asked.rank(query, ["A ship."])


def test_a_document_that_fits_is_not_cut():
    text = "The keeper counts the ships that pass the lighthouse in the fog, one by one."
    asked = retriever("listwise")
    needed = len(store_of(asked).context.tokenizer.prompt(store_of(asked).context.template, [text], QUERY).ids)
    exact = retriever("listwise", context_length=needed)
    assert not exact.rank(QUERY, [text])[0].truncated
    same(exact.score(QUERY, [text]), asked.score(QUERY, [text]))
    with pytest.warns(UserWarning, match="only the beginning of document 0"):
        assert retriever("listwise", context_length=needed - 1).rank(QUERY, [text])[0].truncated


def test_the_null_query_fits_too():
    """Learned positions end where the context does, and the null query may be the longer one."""
    config = AutoConfig.for_model("gpt2", n_layer=3, n_head=4, n_embd=32, vocab_size=600, n_positions=512)
    model, tokenizer = AutoModelForCausalLM.from_config(config).eval(), tiny_tokenizer()
    asked = QRRetriever(model, tokenizer, heads=[(1, 0)])
    prompt, template = store_of(asked).context.tokenizer.prompt, store_of(asked).context.template
    lengths = [len(prompt(template, ["One.", "Two.", "Three."], query).ids) for query in ("a", "N/A")]
    assert lengths[0] < lengths[1]
    exact = QRRetriever(model, tokenizer, heads=[(1, 0)], context_length=lengths[1] - 1)
    with pytest.warns(UserWarning, match="sliding windows"):
        assert exact.rank("a", ["One.", "Two.", "Three."]).windowed


@pytest.mark.parametrize("mode", PER_PASSAGE_MODES)
def test_the_size_of_a_batch_changes_no_score(mode):
    documents = [f"The keeper of house {number} counts the ships. " * number for number in range(1, 9)]
    wanted = retriever(mode).score(QUERY, documents)
    for batch_tokens in (1, 300, 4096, 10**6):
        assert retriever(mode, batch_tokens=batch_tokens).score(QUERY, documents) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(
    ("device", "free", "wanted"),
    [
        ("cpu", 0, 1024),
        ("cuda", 2 * 2**30, 4096),
        ("cuda", 20 * 2**30, 20 * 1024),
        ("cuda", 100 * 2**30, 65536),
        ("mps", 10 * 2**30, 10 * 1024),
        ("xpu", 0, 4096),
    ],
)
def test_a_batch_suits_the_device(device, free, wanted, monkeypatch):
    """As many MiB are free, partly as what torch has reserved and does not use."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free - 2**20, 2**40))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2**21)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2**20)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: free + 2**20)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 2**20)
    assert batch_tokens_of(torch.device(device)) == wanted


@pytest.mark.parametrize("mode", PER_PASSAGE_MODES)
def test_the_opening_before_every_passage_counts_in_a_batch(mode, monkeypatch):
    asked = retriever(mode, batch_tokens=300)
    reader, rows = store_of(asked).context.reader, []
    prefill = reader.prefill
    monkeypatch.setattr(
        reader, "prefill", lambda ids, *rest, **more: rows.append(tuple(ids.shape)) or prefill(ids, *rest, **more)
    )
    asked.encode([f"ship {number}" for number in range(40)])
    opening = rows[0][1]
    assert len(rows) > 3
    assert all(count * (opening + length) <= 300 for count, length in rows[1:])


@pytest.mark.slow
def test_eviction_never_changes_a_result():
    lists = [[f"ship {number} of {other}" for other in range(6)] for number in range(8)]
    for mode in MODES:
        wanted = [retriever(mode, cache_bytes=0).score(QUERY, documents) for documents in lists]
        small = retriever(mode, cache_bytes=60_000)
        for number in [0, 1, 0, 2, 3, 4, 0, 5, 6, 7, 1, 0]:
            same(small.score(QUERY, lists[number]), wanted[number])
            assert store_of(small).cache.nbytes <= 60_000


def test_the_cache_forgets_the_oldest_and_never_passes_its_bound():
    class Entry:
        def __init__(self, nbytes):
            self.nbytes = nbytes

    cache = ByteCache(100)
    for name in "abc":
        cache.put(name, Entry(30))
    assert cache.get("a") is not None
    cache.put("d", Entry(30))
    assert (cache.get("b"), len(cache), cache.nbytes) == (None, 3, 90)
    cache.put("e", Entry(101))
    assert (len(cache), cache.nbytes) == (3, 90), "what cannot be kept takes no other's place"
    cache.put("d", Entry(101))
    assert (cache.get("d"), len(cache), cache.nbytes) == (None, 2, 60)


@pytest.mark.slow
def test_queries_leave_no_tensors_behind():
    def tensors():
        gc.collect()
        return sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects())

    for mode in MODES:
        asked = retriever(mode)
        encoded = asked.encode(DOCUMENTS)
        encoded.rank(QUERY), asked.rank(QUERY, DOCUMENTS)
        before, size = tensors(), encoded.nbytes
        for number in range(20):
            encoded.rank(f"who counts ship {number}?")
            asked.rank(f"who counts ship {number}?", DOCUMENTS)
        assert (tensors(), encoded.nbytes) == (before, size)


@pytest.mark.soak
def test_ten_thousand_queries_do_not_grow_memory():
    encoded = retriever("late").encode(DOCUMENTS)
    process = psutil.Process()
    for number in range(2000):
        encoded.rank(f"ship {number}?")
    before = process.memory_info().rss
    for number in range(2000, 10_000):
        encoded.rank(f"ship {number}?")
    assert process.memory_info().rss < 1.03 * before


def test_the_modes_rank_the_embedded_models_way(embedded):
    """The small real model finds the passage that answers under each mode."""
    documents = [
        "The ferry leaves at nine from the north pier.",
        "Gulls nest on the old mill; the mill was closed in 1931.",
        "The library lends maps for a week, and atlases not at all.",
        "Keys of the boathouse hang behind the door of the workshop.",
    ]
    for mode in MODES:
        asked = QRRetriever(
            embedded.model, embedded.tokenizer, model_name=embedded.model_name, heads=embedded.heads, mode=mode
        )
        assert asked.rank("How long may I borrow a map?", documents)[0].index == 2
        assert asked.rank("Where do I find the boathouse keys?", documents)[0].index == 3
