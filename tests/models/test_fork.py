"""Forked processes: a model that would wait there for ever says so, and what the message advises works."""

import subprocess
import sys

import pytest

from tests.helpers.alone import ROOT

CODE = """
import os, threading, torch
from qrhead_rag import QRRetriever
from tests.helpers.tiny import tiny_model, tiny_tokenizer

torch.set_num_threads(2)

def make():
    return QRRetriever(tiny_model(), tiny_tokenizer(), heads=[(1, 0), (2, 1)])

def score(retriever):
    return retriever.score("Who counts the ships?", ["The keeper counts the ships. " * 4, "Bread is baked. " * 4])

def in_a_child(name, action):
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    try:
        print(name, action(), flush=True)
    except RuntimeError as error:
        print(name, error, flush=True)
    os._exit(0)

def alone():
    torch.set_num_threads(1)
    return [round(score, 3) for score in score(retriever)]

in_a_child("before", lambda: [round(score, 3) for score in score(make())])
retriever = make()
in_a_child("made", lambda: score(retriever))
print("parent", [round(score, 3) for score in score(retriever)], flush=True)
in_a_child("used", lambda: score(retriever))
in_a_child("anew", make)
in_a_child("alone", alone)
started, done = threading.Event(), threading.Event()

def hold(module, inputs):
    started.set()
    done.wait()

handle = retriever.model.get_input_embeddings().register_forward_pre_hook(hold)
thread = threading.Thread(target=retriever.score, args=("Who?", ["One.", "Two."]))
thread.start()
started.wait()
in_a_child("during", alone)
done.set()
thread.join()
"""


@pytest.mark.slow
def test_a_forked_process_raises_what_would_wait_for_ever():
    process = subprocess.run(
        [sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, timeout=300, check=True
    )
    outcome = dict(line.split(" ", 1) for line in process.stdout.splitlines())
    assert outcome["before"] == outcome["parent"]
    for name in ("made", "used", "anew"):
        assert "the threads of torch do not exist here" in outcome[name], name
    assert outcome["alone"] == outcome["parent"]
    assert "forked while another thread loaded or ran this model" in outcome["during"]
