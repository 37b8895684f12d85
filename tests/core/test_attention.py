"""The weights that are read equal the model's own eager attention, family by family, and the model is left as found."""

import copy
import threading

import accelerate
import pytest
import torch

from qrhead_rag.core.attention import HeadReader, QueryPrefix, Rows
from qrhead_rag.core.model_view import find_decoder
from tests.helpers.tiny import FAMILIES, tiny_model

HEADS = [(2, 1), (0, 3), (2, 0), (1, 2)]
PREFIX, PARTS = 60, (9, 5)


def eager_attention(model, ids):
    """Every layer's attention weights by the plain way. # (layers, heads, tokens, tokens)"""
    slow = copy.deepcopy(model)
    slow.set_attn_implementation("eager")
    with torch.no_grad():
        return torch.cat(slow(ids, output_attentions=True, use_cache=False).attentions)


def documents_and_parts(seed=1):
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(1, 500, (1, length), generator=generator) for length in (PREFIX, *PARTS)]
    return ids[0], [part[0].tolist() for part in ids[1:]]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk", [2048, 17], ids=["whole", "chunked"])
@pytest.mark.slow
def test_read_equals_eager_output_attentions(family, chunk):
    model = tiny_model(family)
    documents, parts = documents_and_parts()
    reader = HeadReader(model, HEADS)
    cache = reader.prefill(documents, chunk=chunk)
    read_from = 2
    attention = reader.read(cache, [Rows(part, PREFIX, (range(read_from, len(part)),)) for part in parts])
    for number, part in enumerate(parts):
        weights = eager_attention(model, torch.cat([documents, torch.tensor([part])], dim=1))
        wanted = torch.stack([weights[layer, head, PREFIX + read_from :, :PREFIX].mean(0) for layer, head in HEADS])
        torch.testing.assert_close(attention[:, number], wanted, atol=1e-5, rtol=0)
    assert attention.std() > 1e-3, "attention that is all alike proves nothing"


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text", "gpt_oss", "cohere2"])
def test_windows_and_sinks_matter_to_the_comparison(family):
    """The families above differ from plain attention on this very input, so that the comparison can fail."""
    documents, parts = documents_and_parts()
    model = tiny_model(family)
    weights = eager_attention(model, torch.cat([documents, torch.tensor([parts[0]])], dim=1))
    kinds = getattr(model.config, "layer_types", None) or ["sliding_attention"] * len(weights)
    hidden = [bool((of_layer[:, -1, : PREFIX - 24] == 0).all()) for of_layer in weights]
    assert hidden == [kind == "sliding_attention" for kind in kinds]
    assert any(hidden[layer] for layer, _ in HEADS), "no head of the comparison has a window"


@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
def test_early_exit_changes_nothing_and_runs_nothing_more(family):
    model = tiny_model(family)
    documents, parts = documents_and_parts()
    rows = [Rows(part, PREFIX) for part in parts]
    every = [(layer, head) for layer in range(4) for head in range(4)]
    deep, shallow = HeadReader(model, every), HeadReader(model, HEADS)
    whole = deep.read(deep.prefill(documents), rows)
    cut_cache = shallow.prefill(documents)
    cut = shallow.read(cut_cache, rows)
    assert len(cut_cache.layers) == 3
    torch.testing.assert_close(cut, whole[[every.index(head) for head in HEADS]], atol=1e-6, rtol=0)


def test_nothing_runs_after_the_last_attention():
    model = tiny_model()
    calls = []
    for number, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_hook(lambda *_, number=number: calls.append(number))
    reader = HeadReader(model, HEADS)
    reader.prefill(torch.arange(1, 20)[None])
    assert calls == [0, 1]


def test_parts_do_not_see_each_other_and_the_cache_is_not_changed():
    model = tiny_model()
    documents, parts = documents_and_parts()
    reader = HeadReader(model, HEADS)
    cache = reader.prefill(documents)
    before = [layer.keys.clone() for layer in cache.layers]
    together = reader.read(cache, [Rows(part, PREFIX) for part in parts])
    alone = torch.cat([reader.read(cache, [Rows(part, PREFIX)]) for part in parts], dim=1)
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(cache.layers, before, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_run_before_are_read_as_if_they_ran_with_the_parts(family):
    model = tiny_model(family)
    documents, (beginning, ending) = documents_and_parts()
    reader = HeadReader(model, HEADS)
    cache, late = reader.prefill(documents[:, :12]), reader.prefill(documents)
    position = PREFIX + 7  # not right after the cached tokens
    parts = [
        Rows([*beginning, *ending], position, (range(2, 9), range(9, 10), range(7, 14))),
        Rows([*beginning, 17], position, (range(8, 10),)),
    ]
    options = {
        "late_keys": reader.keys_for_heads([*map(keys_of, late.layers)])[0],
        "late_positions": torch.arange(PREFIX),
        "hidden": 3,
    }
    before = [layer.keys.clone() for layer in cache.layers]
    expected, ran = reader.read(cache, parts, **options), []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: ran.append(inputs[0].tolist()))
    prefix = QueryPrefix(beginning, position)
    first = reader.read(cache, parts, prefix=prefix, **options)
    again = reader.read(cache, parts, prefix=prefix, **options)
    torch.testing.assert_close(again, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(first, again, atol=1e-6, rtol=0)
    assert ran == [[[*beginning, *ending, 17]], [[*ending, 17]]]
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(cache.layers, before, strict=True))
    assert expected.std() > 1e-3, "attention that is all alike proves nothing"


def test_a_reading_is_the_mean_of_its_rows_in_any_order():
    documents, (part, _) = documents_and_parts()
    reader = HeadReader(tiny_model(), HEADS)
    cache = reader.prefill(documents)
    by_row = reader.read(cache, [Rows(part, PREFIX, tuple(range(row, row + 1) for row in range(len(part))))])
    readings = (range(4, 9), range(2, 3), range(2, 6), range(1, 2), range(2, 3))
    expected = torch.stack([by_row[:, rows].mean(dim=1) for rows in map(list, readings)], dim=1)
    torch.testing.assert_close(reader.read(cache, [Rows(part, PREFIX, readings)]), expected, atol=1e-6, rtol=0)


def keys_of(layer):
    return layer.keys


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_reads_in_float32(dtype):
    model = tiny_model(dtype=dtype)
    documents, parts = documents_and_parts()
    reader = HeadReader(model, HEADS)
    attention = reader.read(reader.prefill(documents), [Rows(parts[0], PREFIX)])
    weights = eager_attention(model, torch.cat([documents, torch.tensor([parts[0]])], dim=1)).float()
    wanted = torch.stack([weights[layer, head, PREFIX:, :PREFIX].mean(0) for layer, head in HEADS])
    assert attention.dtype == torch.float32
    torch.testing.assert_close(attention[:, 0], wanted, atol=0.02, rtol=0)


def snapshot(model):
    """Everything about a model that a pass could leave changed."""
    return {
        name: (
            {key: id(value) for key, value in module.__dict__.items()},
            [(key, id(value)) for key, value in module._parameters.items()],
            [(key, id(value), value.clone()) for key, value in module._buffers.items()],
            dict(module._forward_hooks),
            dict(module._forward_pre_hooks),
            module.training,
        )
        for name, module in model.named_modules()
    } | {"config": (dict(model.config.__dict__), model.config._attn_implementation)}


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt_oss"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_exactly_as_found(family, fails):
    model = tiny_model(family).train()
    documents, parts = documents_and_parts()
    before = snapshot(model)
    reader = HeadReader(model, HEADS)
    if fails:
        model.model.layers[1].mlp.register_forward_pre_hook(raise_keyboard_interrupt)
        before = snapshot(model)
        with pytest.raises(KeyboardInterrupt):
            reader.prefill(documents)
    else:
        reader.read(reader.prefill(documents), [Rows(parts[0], PREFIX)])
    after = snapshot(model)
    assert str(after) == str(before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_in_training_is_read_without_its_dropout():
    model = tiny_model("gpt_neox", hidden_dropout=0.5, attention_dropout=0.5)
    documents, (part, _) = documents_and_parts()

    def read():
        reader = HeadReader(model, HEADS)
        return reader.read(reader.prefill(documents), [Rows(part, PREFIX)])

    expected = read()
    model.train()
    assert torch.equal(read(), expected)
    assert all(module.training for module in model.modules())


def raise_keyboard_interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.slow
def test_a_shared_model_generates_in_another_thread_what_it_generates_alone():
    model = tiny_model()
    documents, parts = documents_and_parts()
    prompt = torch.arange(5, 40)[None]

    def generate():
        return model.generate(prompt, max_new_tokens=40, do_sample=False)

    alone = generate()
    reader = HeadReader(model, HEADS)
    wanted = reader.read(reader.prefill(documents), [Rows(parts[0], PREFIX)])
    results = []
    thread = threading.Thread(target=lambda: results.extend(generate() for _ in range(3)))
    thread.start()
    while thread.is_alive():
        attention = reader.read(reader.prefill(documents), [Rows(parts[0], PREFIX)])
        torch.testing.assert_close(attention, wanted)
    assert all(torch.equal(result, alone) for result in results)
    assert len(results) == 3


def test_forward_replaced_by_accelerate_is_followed(tmp_path):
    plain = tiny_model()
    documents, parts = documents_and_parts()
    reader = HeadReader(plain, HEADS)
    wanted = reader.read(reader.prefill(documents), [Rows(parts[0], PREFIX)])
    model = copy.deepcopy(plain)
    names = {f"model.layers.{number}": "disk" if number == 1 else "cpu" for number in range(4)}
    names |= {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    accelerate.dispatch_model(model, names, main_device="cpu", offload_dir=str(tmp_path), force_hooks=True)
    assert model.model.layers[1].mlp.up_proj.weight.device.type == "meta"
    reader = HeadReader(model, HEADS)
    attention = reader.read(reader.prefill(documents), [Rows(parts[0], PREFIX)])
    torch.testing.assert_close(attention, wanted)
    assert model.model.layers[1].mlp.up_proj.weight.device.type == "meta"


@pytest.mark.parametrize(
    ("family", "changes", "named"),
    [
        ("llama", {"layer_types": ["full_attention", "linear_attention"] * 2}, "linear_attention"),
        ("llama", {"kv_lora_rank": 8}, "latent attention"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(family, changes, named):
    model = tiny_model(family)
    for name, value in changes.items():
        object.__setattr__(model.config, name, value)
    with pytest.raises(ValueError, match=f"{family}.*{named}"):
        find_decoder(model)


def test_a_model_cut_over_processes_is_refused_as_each_has_other_heads():
    model = tiny_model()
    model._device_mesh = object()
    with pytest.raises(ValueError, match=r"cut over several processes \(tp_plan\).*device_map"):
        HeadReader(model, HEADS)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_equals_cpu():
    model = tiny_model()
    documents, parts = documents_and_parts()
    on_cpu = HeadReader(model, HEADS)
    wanted = on_cpu.read(on_cpu.prefill(documents), [Rows(parts[0], PREFIX)])
    on_gpu = HeadReader(copy.deepcopy(model).cuda(), HEADS)
    attention = on_gpu.read(on_gpu.prefill(documents), [Rows(parts[0], PREFIX)])
    torch.testing.assert_close(attention.cpu(), wanted, atol=1e-5, rtol=0)
