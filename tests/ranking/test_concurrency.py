"""One retriever shared by threads, tasks, frameworks, and a model that generates meanwhile."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from langchain.agents.middleware import ModelRequest, ModelResponse
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_qrhead import QRHeadMemoryMiddleware, trim_messages_by_relevance
from langchain_qrhead import QRHeadReranker as LangChainReranker
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.postprocessor.qrhead import QRHeadMemory
from llama_index.postprocessor.qrhead import QRHeadReranker as LlamaIndexReranker
from tqdm.auto import tqdm

from qrhead_rag import QRRetriever
from tests.helpers.modes import MODES
from tests.helpers.tiny import tiny_model, tiny_tokenizer

THREADS, TASKS = 16, 32
SUBJECTS = ["keeper", "lighthouse", "harbour", "soup", "fog", "pier", "ship", "bell"]


def case(number):
    """A question for each worker, about one of eight lists."""
    house = number % 8
    documents = [f"The {SUBJECTS[(house + k) % 8]} of house {house} has number {k}." for k in range(3 + house % 4)]
    return f"Which number has the {SUBJECTS[house]}, asks {number}?", documents


@pytest.fixture(
    params=["tiny listwise", "tiny independent", "tiny late", pytest.param("embedded", marks=pytest.mark.embedded)]
)
def shared(request):
    if request.param == "embedded":
        return request.getfixturevalue("embedded")
    # Nothing is remembered, so that every call has to run the model.
    mode = request.param.split()[1]
    return QRRetriever(tiny_model(), tiny_tokenizer(), heads=[(1, 0), (2, 1)], mode=mode, cache_bytes=0)


def serial_scores(retriever, count):
    return [retriever.score(*case(number)) for number in range(count)]


def by_llama_index(retriever, number):
    query, documents = case(number)
    nodes = [NodeWithScore(node=TextNode(text=text, id_=str(n))) for n, text in enumerate(documents)]
    reranker = LlamaIndexReranker(scorer=retriever, top_n=None)
    return reranker, query, nodes


def by_langchain(retriever, number):
    query, texts = case(number)
    documents = [Document(page_content=text, id=str(n)) for n, text in enumerate(texts)]
    return LangChainReranker(scorer=retriever, top_n=None), query, documents


def of_nodes(nodes):
    return [node.score for node in sorted(nodes, key=lambda node: int(node.node_id))]


def of_documents(documents):
    return [d.metadata["relevance_score"] for d in sorted(documents, key=lambda document: int(document.id))]


def assert_equal_scores(score_lists, expected):
    for scores, serial in zip(score_lists, expected, strict=True):
        assert scores == pytest.approx(serial, abs=1e-6)


@pytest.mark.slow
def test_threads_give_the_scores_of_the_serial_run(shared):
    expected = serial_scores(shared, THREADS)
    barrier = threading.Barrier(THREADS)

    def work(number):
        barrier.wait()
        if number % 3 == 0:
            return shared.score(*case(number))
        if number % 3 == 1:
            reranker, query, nodes = by_llama_index(shared, number)
            return of_nodes(reranker.postprocess_nodes(nodes, query_str=query))
        reranker, query, documents = by_langchain(shared, number)
        return of_documents(reranker.compress_documents(documents, query))

    with ThreadPoolExecutor(THREADS) as pool:
        assert_equal_scores(list(pool.map(work, range(THREADS))), expected)


@pytest.mark.slow
async def test_tasks_give_the_scores_of_the_serial_run(shared):
    expected = serial_scores(shared, TASKS)

    async def work(number):
        if number % 2:
            reranker, query, nodes = by_llama_index(shared, number)
            return of_nodes(await reranker.apostprocess_nodes(nodes, query_str=query))
        reranker, query, documents = by_langchain(shared, number)
        return of_documents(await reranker.acompress_documents(documents, query))

    assert_equal_scores(await asyncio.gather(*(work(number) for number in range(TASKS))), expected)


async def postprocess(scorer, texts):
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in texts]
    await LlamaIndexReranker(scorer=scorer).apostprocess_nodes(nodes, query_str="who counts?")


async def compress(scorer, texts):
    documents = [Document(page_content=text) for text in texts]
    await LangChainReranker(scorer=scorer).acompress_documents(documents, "who counts?")


async def remember(scorer, texts):
    memory = QRHeadMemory.from_defaults(scorer=scorer, token_limit=60, keep_last=1)
    await memory.aset([ChatMessage(role="user", content=text) for text in texts])
    await memory.aget("who counts?")


async def trim(scorer, texts):
    async def handler(request):
        return ModelResponse(result=[])

    middleware = QRHeadMemoryMiddleware(max_tokens=60, keep_last=1, scorer=scorer)
    messages = [*(HumanMessage(text) for text in texts), HumanMessage("who counts?")]
    await middleware.awrap_model_call(ModelRequest(model=FakeListChatModel(responses=[]), messages=messages), handler)


@pytest.mark.parametrize("work", [postprocess, compress, remember, trim])
async def test_the_event_loop_runs_while_a_list_is_scored(work):
    """The model waits for an answer of the event loop, which a blocked loop could not give."""
    retriever = QRRetriever(tiny_model(), tiny_tokenizer(), heads=[(1, 0), (2, 1)], mode="late")
    loop, loop_thread, answers = asyncio.get_running_loop(), threading.get_ident(), []

    async def answer():
        return "alive"

    def ask_the_loop(module, inputs):
        assert threading.get_ident() != loop_thread, "the model runs on the thread of the event loop"
        answers.append(asyncio.run_coroutine_threadsafe(answer(), loop).result(timeout=60))

    retriever.model.get_input_embeddings().register_forward_pre_hook(ask_the_loop)
    await work(retriever, [f"Page {number}. The keeper counts ships in the fog." for number in range(9)])
    assert set(answers) == {"alive"}


@pytest.mark.slow
def test_a_model_that_generates_meanwhile_generates_what_it_would_alone():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    prompt = tokenizer("The keeper of the lighthouse", return_tensors="pt")
    options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    alone = model.generate(**prompt, **options)
    retrievers = [QRRetriever(model, tokenizer, heads=[(1, 0), (2, 1)], mode=mode, cache_bytes=0) for mode in MODES]
    expected = [serial_scores(retriever, 6) for retriever in retrievers]
    done, rounds, generated = threading.Event(), [], []

    def score():
        while not done.is_set():
            rounds.append([serial_scores(retriever, 6) for retriever in retrievers])

    scoring = threading.Thread(target=score)
    scoring.start()
    try:
        while scoring.is_alive() and (len(generated) < 12 or not rounds):
            generated.append(model.generate(**prompt, **options))
    finally:
        done.set()
        scoring.join()
    assert all(torch.equal(tokens, alone) for tokens in generated)
    assert rounds
    for scores in rounds:
        for retriever_scores, serial in zip(scores, expected, strict=True):
            assert_equal_scores(retriever_scores, serial)


@pytest.mark.slow
def test_threads_trim_their_own_conversations():
    def conversation(number):
        asked = [(HumanMessage(f"ask {number} {k} of the ship"), AIMessage(f"tell {number} {k}")) for k in range(8)]
        return [message for pair in asked for message in pair] + [HumanMessage(f"what of {number % 8}?")]

    def work(number, scorer):
        return trim_messages_by_relevance(
            conversation(number), max_tokens=6, token_counter=len, keep_last=1, scorer=scorer
        )

    serial, shared = (
        QRRetriever(tiny_model(), tiny_tokenizer(), heads=[(1, 0), (2, 1)], mode="late") for _ in range(2)
    )
    alone = [work(number, serial) for number in range(THREADS)]
    for number, kept in enumerate(alone):
        assert len(kept) == 5
        assert all(message in conversation(number) for message in kept)
    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(work, range(THREADS), [shared] * THREADS)) == alone


@pytest.mark.parametrize("mode", MODES)
def test_a_bar_that_hangs_in_another_thread_holds_up_no_ranking_without_one(mode):
    """An interrupted bar may leave tqdm's lock taken, and with it every tqdm that is made, also a disabled one."""
    retriever = QRRetriever(tiny_model(), tiny_tokenizer(), heads=[(1, 0)], mode=mode)
    done = threading.Event()

    def work():
        retriever.rank_lists(["who?"], [["The keeper counts.", "A cat slept."]])
        done.set()

    with tqdm.get_lock():
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        assert done.wait(60)
    thread.join()
