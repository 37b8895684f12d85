"""Interruptions, exhausted memory and failing callbacks in the middle of a pass.

Whatever stops a pass, the model is as it was found, the lock is free, and the retriever, its caches and its lists answer
as fresh ones do.
"""

import importlib
import random
import signal
import threading
import warnings
import weakref
from contextlib import contextmanager

import pytest
import torch
from transformers import modeling_gguf_pytorch_utils

from qrhead_rag import LabelledExample, Passage, QRRetriever
from qrhead_rag.core.model_view import cache_argument
from qrhead_rag.detect.recording import record
from qrhead_rag.models.quiet import quiet
from qrhead_rag.ranking.store import store_of
from qrhead_rag.ranking.warn import warn_caller
from qrhead_rag.ranking.windows import is_out_of_memory
from tests.core.test_attention import snapshot
from tests.helpers.interruptions import interrupted_at
from tests.helpers.modes import MODES
from tests.helpers.tiny import tiny_model, tiny_tokenizer
from tests.helpers.warned import warnings_of_call

HEADS = [(1, 0), (1, 3), (2, 1), (2, 2)]
QUERY, OTHER = "Who counts the ships?", "What is baked?"
DOCUMENTS = ["The keeper counts the ships. " * 6, "Bread is baked at dawn.", "", "Nothing passes.", "A third one"]
MORE = ["Fog came at noon. " * 8, "The lamp burns oil."]
ASKED = [(QUERY, DOCUMENTS), (OTHER, DOCUMENTS), (QUERY, MORE), (QUERY, DOCUMENTS + MORE)]

every_mode = pytest.mark.parametrize("mode", MODES)


def make(model, mode="listwise", **options):
    """Small pieces and chunks, so that there are many passes to stop."""
    options = {"prefill_tokens": 24, "piece_tokens": 16, "context_length": 400} | options
    return QRRetriever(model, tiny_tokenizer(), heads=HEADS, mode=mode, **options)


@pytest.fixture(scope="module")
def model():
    return tiny_model(max_position_embeddings=2048)


@pytest.fixture(scope="module")
def fresh(model):
    """By mode, the scores of some lists by a retriever that nothing has happened to."""
    made = {mode: make(model, mode) for mode in MODES}
    return {mode: [retriever.score(*asked) for asked in ASKED] for mode, retriever in made.items()}


@pytest.fixture(autouse=True)
def _interruptible():
    """Shells start what runs in the background with interruptions ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class CallbackError(Exception):
    """What a caller's own code raises."""


def raises(error):
    def stop():
        raise error

    return stop


STOPS = {
    "interrupt": (lambda: signal.raise_signal(signal.SIGINT), KeyboardInterrupt),
    "memory of a GPU": (raises(torch.OutOfMemoryError("CUDA out of memory.")), torch.OutOfMemoryError),
    "memory of a CPU": (
        raises(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")),
        RuntimeError,
    ),
    "memory of Python": (raises(MemoryError()), MemoryError),
    "callback": (raises(CallbackError("mine")), CallbackError),
}


@contextmanager
def stopped(module, stop, at):
    """Stop the `at`-th call of a module, from 0, once."""
    calls = []

    def count(*_):
        calls.append(1)
        if len(calls) == at + 1:
            stop()

    handle = module.register_forward_pre_hook(count)
    try:
        yield calls
    finally:
        handle.remove()


def lock_is_free(retriever):
    """Whether another thread could go on."""
    acquired = []

    def try_lock():
        acquired.append(store_of(retriever).context.lock.acquire(timeout=5))
        if acquired[0]:
            store_of(retriever).context.lock.release()

    thread = threading.Thread(target=try_lock)
    thread.start()
    thread.join()
    return acquired[0]


def assert_as_fresh(retriever, fresh):
    """Scores of a retriever that nothing has happened to; caches whose books agree."""
    for asked, wanted in zip(ASKED, fresh[retriever.mode], strict=True):
        assert retriever.score(*asked) == pytest.approx(wanted, abs=1e-5)
    cache = store_of(retriever).cache
    assert cache.nbytes == sum(size for _, size in cache._entries.values())


def extended(retriever):
    encoded = retriever.encode(DOCUMENTS)
    encoded.score(QUERY)
    encoded.extend(MORE)
    encoded.remove(1)
    encoded.rank_queries([QUERY, OTHER])


ACTIONS = {
    "rank": lambda retriever: retriever.rank(QUERY, DOCUMENTS),
    "score": lambda retriever: retriever.score(OTHER, DOCUMENTS),
    "extend": extended,
}
LAYERS = ["embedding", "layer 0", "layer 1", "the last attention"]


def module_of(model, layer):
    layers = model.model.layers
    return [model.model.embed_tokens, layers[0], layers[1].mlp, layers[2].self_attn][LAYERS.index(layer)]


# A stop at any layer.


@every_mode
@pytest.mark.parametrize(("stop", "error"), STOPS.values(), ids=STOPS.keys())
@pytest.mark.slow
def test_a_stop_at_any_layer_leaves_everything_usable(model, fresh, mode, stop, error):
    for number, layer in enumerate(LAYERS):
        retriever, before = make(model, mode), str(snapshot(model))
        for at, action in zip((0, 1, 2), random.Random(number).sample(list(ACTIONS.values()), 3), strict=True):
            store_of(retriever).clear()
            with stopped(module_of(model, layer), stop, at) as calls, pytest.raises(error) as caught:
                action(retriever)
            assert len(calls) == at + 1
            assert caught.type is error
            assert lock_is_free(retriever), "though the error, and with it the stack, is still held"
            assert str(snapshot(model)) == before
        assert_as_fresh(retriever, fresh)


@every_mode
@pytest.mark.slow
def test_a_list_that_was_stopped_answers_as_a_fresh_one(model, mode):
    """Encoded lists live on after a stop in each of their passes."""
    wanted = make(model, mode).encode(DOCUMENTS + MORE).score(QUERY)
    retriever = make(model, mode, cache_bytes=0)
    for at in range(60):
        encoded = retriever.encode(DOCUMENTS)
        with stopped(model.model.layers[1], STOPS["interrupt"][0], at) as calls:
            try:
                encoded.score(OTHER)
                encoded.extend(MORE)
                encoded.score(QUERY)
            except KeyboardInterrupt:
                pass
            else:
                break
        assert len(calls) == at + 1
        encoded.extend([document for document in MORE if len(encoded) < len(DOCUMENTS + MORE)])
        assert encoded.score(QUERY) == pytest.approx(wanted, abs=1e-5)
    assert at > 2, "there was something to stop"


@every_mode
@pytest.mark.slow
def test_an_interruption_anywhere_leaves_everything_usable(model, fresh, mode):
    rng = random.Random(0)
    for action in ACTIONS.values():
        with interrupted_at(None) as seen:
            action(make(model, mode))
        retriever, before = make(model, mode, cache_bytes=200_000), str(snapshot(model))
        for at in sorted(rng.sample(range(1, seen[0]), 16)):
            store_of(retriever).clear()
            free = True
            try:
                with interrupted_at(at):
                    action(retriever)
            except KeyboardInterrupt:
                free = lock_is_free(retriever)  # while the stack is held
            assert free
            cache = store_of(retriever).cache
            assert cache.nbytes == sum(size for _, size in cache._entries.values())
        assert str(snapshot(model)) == before
        assert_as_fresh(retriever, fresh)


@every_mode
@pytest.mark.slow
def test_an_interruption_anywhere_in_a_change_leaves_the_list_one_or_the_other(model, mode):
    retriever = make(model, mode)
    wanted = {len(texts): retriever.score(QUERY, texts) for texts in (DOCUMENTS, DOCUMENTS + MORE)}
    encoded = retriever.encode(DOCUMENTS)
    with interrupted_at(None) as seen:
        encoded.extend(MORE)
    # Every place, but those deep within a tokenizer's C code that are all alike: the last ones say what is changed.
    for at in [*range(1, seen[0], 9), *range(max(1, seen[0] - 40), seen[0] + 1)]:
        encoded = retriever.encode(DOCUMENTS)
        try:
            with interrupted_at(at):
                encoded.extend(MORE)
        except KeyboardInterrupt:
            pass
        assert encoded.score(QUERY) == pytest.approx(wanted[len(encoded)], abs=1e-5)


# Callbacks.


@every_mode
@pytest.mark.slow
def test_a_token_counter_that_fails(model, fresh, mode):
    retriever = make(model, mode)

    def fail(text):
        raise CallbackError(text)

    for ask in (
        lambda: retriever.rank(QUERY, DOCUMENTS, max_tokens=20, token_counter=fail),
        lambda: retriever.encode(DOCUMENTS).rank(QUERY, max_tokens=20, token_counter=fail),
        lambda: windowed(retriever, QUERY, DOCUMENTS * 9, max_tokens=20, token_counter=fail),
    ):
        with pytest.raises(CallbackError):
            ask()
        assert lock_is_free(retriever)
    assert_as_fresh(retriever, fresh)


@every_mode
def test_documents_that_fail_while_they_are_given(model, fresh, mode):
    retriever = make(model, mode)
    encoded = retriever.encode(DOCUMENTS)
    wanted = encoded.score(QUERY)

    def failing():
        yield "one"
        raise CallbackError

    for ask in (retriever.encode, encoded.extend, lambda documents: retriever.rank(QUERY, documents)):
        with pytest.raises(CallbackError):
            ask(failing())
    assert len(encoded) == len(DOCUMENTS)
    assert encoded.score(QUERY) == pytest.approx(wanted, abs=1e-6)
    assert_as_fresh(retriever, fresh)


def test_a_recording_whose_progress_callback_fails_goes_on_where_it_stopped(model, tmp_path):
    examples = [
        LabelledExample(
            query=f"Who is {number}?", documents=[Passage(text="The keeper"), Passage(text="Fog")], relevant=[0]
        )
        for number in range(5)
    ]
    retriever = QRRetriever(model, tiny_tokenizer(), heads="all")

    def fail(done, total):
        if done == 3:
            raise CallbackError

    with pytest.raises(CallbackError):
        record(retriever, examples, tmp_path / "stopped", fail)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "stopped").iterdir()}
    assert len(made) == 3
    resumed = [scores for _, scores in record(retriever, examples, tmp_path / "stopped")]
    assert all(path.stat().st_mtime_ns == time for path, time in made.items())
    wanted = [scores for _, scores in record(retriever, examples, tmp_path / "whole")]
    for scores, whole in zip(resumed, wanted, strict=True):
        torch.testing.assert_close(scores, whole, atol=1e-6, rtol=0)


def test_threads_that_load_at_once_leave_logging_as_it_was(monkeypatch):
    from transformers.utils import logging as theirs

    before = theirs.get_verbosity(), theirs.is_progress_bar_enabled(), modeling_gguf_pytorch_utils.tqdm
    inside, go_on = threading.Event(), threading.Event()

    def first():
        with quiet():
            inside.set()
            go_on.wait(10)

    def second():
        with quiet():
            pass

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    inside.wait(10)
    threads[1].start()
    threads[1].join(0.2)
    go_on.set()
    for thread in threads:
        thread.join()
    assert (theirs.get_verbosity(), theirs.is_progress_bar_enabled()) == before[:2]
    assert modeling_gguf_pytorch_utils.tqdm is before[2]


# Windows that memory cannot hold.


def windowed(retriever, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return retriever.rank(*arguments, **options)


@contextmanager
def memory_for(model, tokens, error, on_failure=lambda: None):
    """A model that runs out of memory where more tokens than these are cached before a pass."""

    def fail(module, arguments, options):
        if options[cache_argument(model.model)].get_seq_length() > tokens:
            on_failure()
            raise error()

    handle = model.model.layers[1].register_forward_pre_hook(fail, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


WORDS = ["the", "keeper", "counts", "ships", "that", "pass", "lighthouse", "fog", "none", "two"]
LONG = [" ".join(random.Random(number).choices(WORDS, k=12)) for number in range(24)]


@pytest.fixture(scope="module")
def narrow(model):
    """Options under which the long list does not fit the context, and the tokens that seven documents take."""
    encoder = store_of(make(model)).context
    length = len(encoder.tokenizer.prompt(encoder.template, LONG, QUERY).ids)
    options = {"prefill_tokens": 2048, "context_length": length - 1, "window": 20}
    return options, encoder.tokenizer.prompt(encoder.template, LONG[:7], QUERY).query_start


MEMORY_ERRORS = {
    "GPU": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "MPS": lambda: RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
    "CPU": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory"),
    "CPU of Windows": lambda: RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    "Python": MemoryError,
}


@pytest.mark.parametrize("stride", [None, 7])
@pytest.mark.parametrize("error", MEMORY_ERRORS.values(), ids=MEMORY_ERRORS.keys())
@pytest.mark.slow
def test_a_windowed_run_out_of_memory_goes_on_in_smaller_windows_and_says_so_once(model, narrow, error, stride):
    options, tokens = narrow[0] | {"stride": stride}, narrow[1]
    small = make(model, **options | {"window": 5, "stride": None if stride is None else 5})
    wanted = windowed(small, QUERY, LONG)
    retriever = make(model, **options)
    with memory_for(model, tokens, error), pytest.warns(UserWarning, match="sliding windows") as caught:
        ranking = retriever.rank(QUERY, LONG)
    (warning,) = warnings_of_call(caught)
    assert warning.filename == __file__
    moved = 2 if stride is None else 5
    assert f"windows of 5 (memory ran out with 20), moved by {moved};" in str(warning.message)
    assert [(ranked.index, ranked.score) for ranked in ranking] == [(ranked.index, ranked.score) for ranked in wanted]
    assert ranking.windowed
    assert [len(passage.tokens) for passage in ranking.explain()] == [
        len(passage.tokens) for passage in wanted.explain()
    ]


def test_smaller_windows_begin_when_the_memory_of_the_failed_pass_is_given_back(model, narrow):
    """No error, so no stack with its tensors, is alive when the next pass begins; nor are lists kept for later."""

    class FailedError(RuntimeError):
        pass

    raised, alive = [], []

    def fail():
        error = FailedError("out of memory")
        raised.append(weakref.ref(error))
        return error

    retriever = make(model, **narrow[0])
    retriever.score(QUERY, MORE)
    assert len(store_of(retriever).cache) == 1
    with memory_for(model, narrow[1], fail, lambda: alive.append([ref() for ref in raised])):
        windowed(retriever, QUERY, LONG)
    assert len(raised) == 2
    assert alive == [[], [None]]
    assert len(store_of(retriever).cache) == 0


def test_memory_that_holds_no_two_documents_is_an_error(model, narrow, fresh):
    retriever, before = make(model, **narrow[0]), str(snapshot(model))
    tries = []
    short = memory_for(model, 10, MEMORY_ERRORS["GPU"], lambda: tries.append(1))
    with short, pytest.raises(torch.OutOfMemoryError):
        windowed(retriever, QUERY, LONG)
    assert len(tries) == 4, "20, 10, 5 and 2 documents"
    assert str(snapshot(model)) == before
    assert_as_fresh(retriever, fresh)


@pytest.mark.parametrize("error", [KeyboardInterrupt, lambda: RuntimeError("shapes differ"), CallbackError])
def test_what_is_not_memory_is_not_tried_again(model, narrow, fresh, error):
    retriever = make(model, **narrow[0])
    tries = []
    short = memory_for(model, 10, error, lambda: tries.append(1))
    with short, pytest.raises((KeyboardInterrupt, RuntimeError, CallbackError)) as caught:
        windowed(retriever, QUERY, LONG)
    assert caught.type is type(error())
    assert len(tries) == 1
    assert_as_fresh(retriever, fresh)


@pytest.mark.parametrize("error", MEMORY_ERRORS.values(), ids=MEMORY_ERRORS.keys())
def test_memory_errors_are_known(error):
    assert is_out_of_memory(error())


def test_the_allocator_of_this_machine_says_what_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.float64)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("out of memory"), KeyboardInterrupt()])
def test_other_errors_are_none_of_memory(error):
    assert not is_out_of_memory(error)


def test_a_package_in_a_target_folder_is_not_the_caller_s_line(tmp_path, monkeypatch):
    """`pip install --target` puts packages where no folder is called site-packages."""
    (tmp_path / "a_framework.py").write_text("def call(function, *arguments):\n    return function(*arguments)\n")
    (tmp_path / "a_framework-1.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    framework = importlib.import_module("a_framework")
    with pytest.warns(UserWarning, match="a word") as caught:
        framework.call(warn_caller, "a word")
    assert caught[0].filename == __file__
