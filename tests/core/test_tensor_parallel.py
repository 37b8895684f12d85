"""A model cut over two processes gives every one of them the scores of the whole model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qrhead_rag import QRRetriever
from qrhead_rag.cluster.pool import Pool
from qrhead_rag.cluster.rank import rank_dataset
from tests.helpers.tiny import tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[2]
FAMILIES = ["llama", "gemma2", "phi3"]
# on both processes, in an order that no process has; on the second alone
HEADS = [[(3, 3), (1, 0), (1, 3), (3, 2), (3, 1)], [(1, 3)]]
DOCUMENTS = ["a ship passed", "the lamp burns oil", "fog came at noon and the keeper slept", "a ship passed"]


class Scores:
    """A maker that scores one list by each family, choice of heads and mode, and writes the list it encoded under late."""

    def __init__(self, folder, **options):
        self._folder, self._options = folder, {"device": "cpu"} | options

    def begin(self):
        pass

    def add(self, file, records):
        found = {}
        for family in FAMILIES:
            for number, heads in enumerate(HEADS):
                for mode in ("listwise", "independent", "late"):
                    retriever = QRRetriever.from_pretrained(
                        f"{self._folder}/{family}", heads=heads, mode=mode, key_dtype="float32", **self._options
                    )
                    self.encoded = retriever.encode(DOCUMENTS)
                    found[f"{family} {number} {mode}"] = [
                        self.encoded.score("which ship passed"),
                        self.encoded.head_scores("where is the oil").tolist(),
                        retriever.score("which ship passed", DOCUMENTS[:2]),
                    ]
        return found, 0

    def write(self, path):
        self.encoded.save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The families on disk."""
    path = tmp_path_factory.mktemp("families")
    for family in FAMILIES:
        tiny_model(family).save_pretrained(path / family)
        tiny_tokenizer().save_pretrained(path / family)
    return str(path)


def test_two_processes_score_like_one(folder, tmp_path):
    code = f"""
import json
from qrhead_rag.cluster.split import SplitMaker
from tests.core.test_tensor_parallel import Scores
if __name__ == "__main__":
    maker = SplitMaker(Scores, {{"folder": {folder!r}, "device": None, "tp_plan": "auto"}}, 2)
    maker.begin()
    found, _ = maker.add("", [])
    maker.write({str(tmp_path / "cut.safetensors")!r})
    print(json.dumps(found))
"""
    script = tmp_path / "cut.py"
    script.write_text(code)
    result = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning", str(script)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    whole = Scores(folder)
    expected, _ = whole.add("", [])
    assert found.keys() == expected.keys()
    for name in expected:
        for one, other in zip(found[name], expected[name], strict=True):
            for row, same in zip(*([x] if isinstance(x[0], float) else x for x in (one, other)), strict=True):
                assert row == pytest.approx(same, abs=1e-5), name


def test_a_plan_without_processes_to_cut_over_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="tp_plan='auto' cuts the model over several processes, this is the only one"):
        QRRetriever.from_pretrained(f"{folder}/llama", heads=[(1, 0)], tp_plan="auto")
    with pytest.raises(ValueError, match="tp_plan='auto' places the model itself; leave out device"):
        QRRetriever.from_pretrained(f"{folder}/llama", heads=[(1, 0)], tp_plan="auto", device="cpu")
    with pytest.raises(
        ValueError, match="tp_plan='auto' cuts a model over the GPUs of an actor, which has 1; expected 2"
    ):
        rank_dataset([tmp_path], tmp_path / "out", tp_plan="auto", pool=Pool(gpus=1))
