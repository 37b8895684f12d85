"""The fingerprint of a model's weights: equal where what runs is equal, and only there."""

import copy

import pytest
import torch

from qrhead_rag.models.fingerprint import weights_fingerprint
from qrhead_rag.models.loading import load_model
from tests.helpers.tiny import FAMILIES, save_tiny, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_changed_weight_changes_it_where_it_runs(family):
    model = copy.deepcopy(tiny_model(family))
    before = weights_fingerprint(model, 2), weights_fingerprint(model, 3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "layers.2." in name:
                weight += 1
    assert weights_fingerprint(model, 2) == before[0]
    assert weights_fingerprint(model, 3) != before[1]
    with torch.no_grad():
        model.get_input_embeddings().weight += 1
    assert weights_fingerprint(model, 2) != before[0]


def test_a_model_cut_to_its_first_layers_has_that_of_the_whole_one(tmp_path):
    save_tiny(tmp_path)
    cut = load_model(str(tmp_path), [(1, 0)], "late", device="cpu")
    whole = load_model(str(tmp_path), "all", "late", device="cpu")
    assert weights_fingerprint(cut.model, 2) == weights_fingerprint(whole.model, 2)


def test_another_dtype_of_one_checkpoint_has_the_same():
    model = copy.deepcopy(tiny_model("llama")).bfloat16()
    assert weights_fingerprint(model, 2) == weights_fingerprint(copy.deepcopy(model).float(), 2)
