"""Head sets: validation, files, shipped sets, and what is refused or warned about."""

import json
import warnings

import numpy
import pytest
from pydantic import ValidationError

from qrhead_rag import HeadSet
from qrhead_rag.core.heads import (
    DEFAULT_READOUTS,
    EMBEDDED_MODEL,
    ModelShape,
    choose_heads,
    find_shipped,
    recommended_mode,
    shipped_head_sets,
)
from tests.helpers.modes import MODES

LLAMA = ModelShape("llama", 30, 9)


def head_set(**changes):
    fields = {
        "model": "some/model",
        "architecture": "llama",
        "num_layers": 30,
        "num_heads": 9,
        "heads": [(17, 3), (2, 8)],
    }
    return HeadSet(**fields | changes)


def test_round_trip_through_json(tmp_path):
    own_set = head_set(
        name="mine", criterion="ndcg", task="nq", mode="late", source="here", num_examples=12, note="n", default=True
    )
    path = tmp_path / "heads.json"
    own_set.save(path)
    assert HeadSet.load(path) == own_set
    assert HeadSet.load(str(path)) == own_set
    assert json.loads(path.read_text())["heads"] == [[17, 3], [2, 8]]


@pytest.mark.parametrize("content", [b"{not json", b"\xff\xfe\x00", b"[]", b"{}", b'{"model": "m"}', b'"text"'])
def test_a_bad_file_is_named(tmp_path, content):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.json is not"):
        HeadSet.load(path)


def test_a_file_with_an_unknown_field_is_refused(tmp_path):
    path = tmp_path / "typo.json"
    path.write_text(json.dumps(head_set().model_dump(mode="json") | {"hedas": []}))
    with pytest.raises(ValueError, match=r"typo\.json is not a head set(.|\n)*hedas"):
        HeadSet.load(path)


def test_a_file_of_a_later_version_is_refused(tmp_path):
    path = tmp_path / "later.json"
    path.write_text(json.dumps(head_set().model_dump(mode="json") | {"version": 2}))
    with pytest.raises(ValueError, match=r"later\.json is not a head set(.|\n)*version"):
        HeadSet.load(path)


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        HeadSet.load(tmp_path / "none.json")


@pytest.mark.parametrize("head", [(30, 0), (0, 9), (-1, 0), (0, -1)])
def test_a_head_out_of_range_is_named_with_the_model(head):
    with pytest.raises(ValidationError, match=rf"head \({head[0]}, {head[1]}\) is outside some/model.*0 to 29.*0 to 8"):
        head_set(heads=[head])


@pytest.mark.parametrize(
    ("heads", "message"), [([], "at least one"), ([(1, 1), (2, 0), (1, 1)], r"twice: \[\(1, 1\)\]")]
)
def test_no_heads_or_a_head_twice(heads, message):
    with pytest.raises(ValidationError, match=message):
        head_set(heads=heads)


def test_a_set_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        head_set().name = "other"


@pytest.mark.parametrize(
    "shape", [LLAMA._replace(architecture="qwen2"), ModelShape("llama", 28, 9), ModelShape("llama", 30, 8)]
)
def test_a_set_of_another_model_is_refused_with_both(shape):
    with pytest.raises(
        ValueError, match=r"some/model \(llama, 30 layers of 9 heads\), but the model is other/model"
    ) as raised:
        head_set().check_belongs_to("other/model", shape)
    assert str(shape) in str(raised.value)
    assert "qrhead detect --model other/model" in str(raised.value)


def test_another_name_with_the_same_shape_warns_with_both():
    with pytest.warns(UserWarning, match=r"found on some/model and is used on a/fine-tune"):
        head_set().check_belongs_to("a/fine-tune", LLAMA)


def test_the_same_model_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        head_set().check_belongs_to("some/model", LLAMA)
        head_set(architecture=None).check_belongs_to("some/model", LLAMA)


def test_all_means_every_head_in_order():
    chosen = choose_heads("all", "some/model", ModelShape("llama", 3, 2), "listwise")
    assert chosen.heads == ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1))


def test_each_kind_of_choice(tmp_path):
    own_set = head_set()
    own_set.save(tmp_path / "mine.json")
    for choice in (own_set, tmp_path / "mine.json", str(tmp_path / "mine.json")):
        assert choose_heads(choice, "some/model", LLAMA, "late") == own_set
    for pairs in ([(17, 3), (2, 8)], [[17, 3], [2, 8]], numpy.array([[17, 3], [2, 8]])):
        chosen = choose_heads(pairs, "some/model", LLAMA, "late")
        assert chosen.heads == own_set.heads
        assert chosen.mode == "late"
        assert all(type(number) is int for head in chosen.heads for number in head)


@pytest.mark.parametrize("choice", [3, [3], [(1, 2, 3)], [("a", "b")], [(1.0, 2)], [(True, 0)], object(), {"heads": 1}])
def test_a_choice_of_the_wrong_type(choice):
    with pytest.raises(TypeError, match="is not understood; expected None, the name of a shipped set"):
        choose_heads(choice, "some/model", LLAMA, "listwise")


def test_given_pairs_out_of_range_or_none():
    with pytest.raises(ValueError, match=r"head \(30, 0\) is outside some/model"):
        choose_heads([(30, 0)], "some/model", LLAMA, "listwise")
    with pytest.raises(ValueError, match="at least one"):
        choose_heads([], "some/model", LLAMA, "listwise")


def test_a_model_with_no_shipped_set_gets_the_detect_command():
    with pytest.raises(ValueError, match=r"no head set is shipped for some/model.*qrhead detect --model some/model"):
        choose_heads(None, "some/model", LLAMA, "listwise")


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(ValueError, match=r"no shipped head set named 'bogus'; expected one of '.*a \.json file"):
        choose_heads("bogus", EMBEDDED_MODEL, LLAMA, "listwise")


def test_the_embedded_models_heads():
    four = {(17, 3), (17, 4), (18, 6), (18, 7)}
    by_default = find_shipped(EMBEDDED_MODEL, "listwise")
    assert (by_default.name, set(by_default.heads)) == ("default", four)
    by_ndcg = find_shipped(EMBEDDED_MODEL, "listwise", "hotpotqa")
    assert (by_ndcg.criterion, by_ndcg.task, set(by_ndcg.heads)) == ("ndcg", "hotpotqa", four)
    assert find_shipped(EMBEDDED_MODEL.lower(), "late").model == EMBEDDED_MODEL


@pytest.mark.parametrize("mode", MODES)
def test_the_embedded_model_has_a_default_and_a_shallow_set_for_each_mode(mode):
    default = find_shipped(EMBEDDED_MODEL, mode)
    assert (default.name, default.mode, default.readout) == ("default", mode, DEFAULT_READOUTS[mode])
    shallow = find_shipped(EMBEDDED_MODEL, mode, "shallow")
    assert (shallow.mode, shallow.max_layer <= 9) == (mode, True)


def test_every_shipped_set_is_whole_and_every_model_has_one_default_a_mode():
    sets = shipped_head_sets()
    assert len({(shipped.model, shipped.name, shipped.mode) for shipped in sets}) == len(sets)
    for model in {shipped.model for shipped in sets}:
        of_model = [shipped for shipped in sets if shipped.model == model]
        assert len({shipped.shape for shipped in of_model}) == 1
        assert len({shipped.architecture for shipped in of_model}) == 1
        defaults = [shipped.mode for shipped in of_model if shipped.default]
        assert defaults, model
        assert len(set(defaults)) == len(defaults), model
        assert find_shipped(model, "listwise").default
    assert all(shipped.source != "unknown" for shipped in sets)
    assert {"Qwen/Qwen2.5-7B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"} <= {shipped.model for shipped in sets}


def test_every_model_with_shipped_heads_recommends_one_set_and_with_it_a_mode():
    recommended = {heads.model: heads for heads in shipped_head_sets() if heads.recommended}
    assert sum(heads.recommended for heads in shipped_head_sets()) == len(recommended)
    assert recommended.keys() == {heads.model for heads in shipped_head_sets()}
    assert all(heads.default for heads in recommended.values())
    for model, heads in recommended.items():
        assert find_shipped(model, None) == heads
        found_here = model in (EMBEDDED_MODEL, "google/gemma-3-270m")
        assert recommended_mode(model) == heads.mode == ("late" if found_here else "listwise")
    assert recommended_mode("some/model") == "listwise"


@pytest.mark.parametrize(
    ("choice", "mode"),
    [(None, "late"), ("shallow", "late"), ("hotpotqa", "listwise"), ("all", "late"), ([(1, 2)], "late")],
)
def test_no_mode_means_the_mode_of_the_heads(choice, mode):
    shape = ModelShape("llama", 30, 9)
    assert choose_heads(choice, EMBEDDED_MODEL, shape, None).mode == mode
    # A mode that is named is the one that heads are looked for under, whatever is recommended.
    assert choose_heads(None, EMBEDDED_MODEL, shape, "listwise").mode == "listwise"


def test_a_default_of_the_same_mode_comes_first():
    for shipped in shipped_head_sets():
        if shipped.default:
            assert find_shipped(shipped.model, shipped.mode).mode == shipped.mode


def test_a_mode_without_a_set_takes_that_of_the_recommended_mode(monkeypatch):
    head_sets = tuple(heads for heads in shipped_head_sets() if heads.mode != "independent")
    monkeypatch.setattr("qrhead_rag.core.heads.shipped_head_sets", lambda: head_sets)
    assert find_shipped(EMBEDDED_MODEL, "independent") == find_shipped(EMBEDDED_MODEL, "late")
    assert find_shipped(EMBEDDED_MODEL, "independent", "shallow").mode == "late"
