"""LoRA directories, against peft itself: what it writes we read, what we write it loads."""

import json
import math
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from share_dist.adapters import (
    LoraAdapter,
    find_targets,
    inject,
    load_lora,
    lora_from_task,
    save_lora,
    subspace_from_adapters,
    update_from_lora,
)
from share_dist.core.merge import merge
from share_dist.core.subspace import project, reconstruct
from share_dist.core.temporary import factor_of
from share_dist.core.values import Head, LayerFactors, Subspace
from share_dist.errors import AdapterFormatError, NotFinite, ShapeMismatch
from tests.adapters.conftest import (
    BERT_TARGETS,
    GPT2_TARGETS,
    logits,
    random_coefficients,
    tiny_bert,
    tiny_gpt2,
    uses_peft,
)

peft = pytest.importorskip("peft")
pytestmark = uses_peft

BERT_VARIANTS = {
    "plain": {"r": 4, "lora_alpha": 8},
    "alpha below rank": {"r": 8, "lora_alpha": 2},
    "rslora": {"r": 4, "lora_alpha": 6, "use_rslora": True},
    "negative alpha": {"r": 2, "lora_alpha": -4},
    "zero alpha": {"r": 2, "lora_alpha": 0},
    "mixed ranks": {
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"layer.0.attention.self.query": 2, "value": 7},
        "alpha_pattern": {r"layer\.\d.attention.self.value": 3, "query": 5},
    },
    "mixed ranks, rslora": {
        "r": 4,
        "lora_alpha": 8,
        "use_rslora": True,
        "rank_pattern": {"^bert.encoder.layer.1.attention.self.query": 1},
        "alpha_pattern": {"value": 16},
    },
    "head": {"r": 4, "lora_alpha": 8, "modules_to_save": ["classifier"]},
    "sequence classification": {"r": 4, "lora_alpha": 8, "task_type": "SEQ_CLS"},
    "gaussian start": {"r": 4, "lora_alpha": 8, "init_lora_weights": "gaussian"},
    "some layers": {"r": 4, "lora_alpha": 8, "layers_to_transform": [1]},
}
GPT2_VARIANTS = {
    "conv1d": {"r": 4, "lora_alpha": 8, "fan_in_fan_out": True},
    "conv1d, rslora, mixed": {
        "r": 4,
        "lora_alpha": 8,
        "fan_in_fan_out": True,
        "use_rslora": True,
        "rank_pattern": {"mlp.c_proj": 3},
    },
}
VARIANTS = [(tiny_bert, BERT_TARGETS, options) for options in BERT_VARIANTS.values()]
VARIANTS += [(tiny_gpt2, GPT2_TARGETS, options) for options in GPT2_VARIANTS.values()]
NAMES = [*BERT_VARIANTS, *GPT2_VARIANTS]


def peft_model(make, targets, options, seed=0):
    """A peft model whose LoRA tensors, and head where it trains one, are random."""
    torch.manual_seed(seed)
    model = peft.get_peft_model(make(), peft.LoraConfig(target_modules=targets, **options)).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def merged_changes(model, base):
    """P13's oracle: peft merges, and the change of every weight is read off, (out, in)."""
    plain = model.merge_and_unload()
    changes = {}
    for name, shape in find_targets(base, "all-linear").items():
        module = plain.get_submodule(name)
        change = module.weight.data.float() - base.get_submodule(name).weight.data.float()
        change = change if isinstance(module, torch.nn.Linear) else change.T
        assert tuple(change.shape) == (shape.out_features, shape.in_features)
        changes[name] = change
    return plain, changes


@pytest.mark.parametrize(("make", "targets", "options"), VARIANTS, ids=NAMES)
def test_what_peft_wrote_is_what_we_read(make, targets, options, tmp_path):
    """P13: for every variant the reconstructed dW equals the dW that peft merges."""
    model = peft_model(make, targets, options)
    model.save_pretrained(tmp_path)
    adapter = load_lora(tmp_path)
    plain, changes = merged_changes(model, make())
    for name, change in changes.items():
        if name in adapter.factors:
            assert torch.allclose(adapter.factors[name].delta_weight(), change, atol=1e-5)
        else:
            assert not change.any()
    assert bool(adapter.head) == bool(options.get("modules_to_save") or options.get("task_type"))
    for name, tensor in adapter.head.items():
        assert torch.equal(tensor, plain.get_parameter(name))


@pytest.mark.parametrize(("make", "targets", "options"), VARIANTS, ids=NAMES)
def test_what_we_write_peft_loads(make, targets, options, tmp_path):
    """P13: saved again by us and loaded by peft, the logits are the ones peft first computed."""
    model = peft_model(make, targets, options)
    expected = logits(model)
    model.save_pretrained(tmp_path / "theirs")
    save_lora(load_lora(tmp_path / "theirs"), tmp_path / "ours", fan_in_fan_out=make is tiny_gpt2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        loaded = peft.PeftModel.from_pretrained(make(), tmp_path / "ours").eval()
    assert torch.allclose(logits(loaded), expected, atol=1e-5)


def test_an_adapter_comes_back_as_it_was_saved(tmp_path):
    """Save, load: the same factors, bit for bit, the same head and metadata."""
    adapter = load_lora(saved_by_peft(tmp_path / "theirs", modules_to_save=["classifier"]))
    save_lora(adapter, tmp_path / "ours", base_model="tiny", task_type="SEQ_CLS")
    again = load_lora(tmp_path / "ours")
    assert again.metadata == {"base_model": "tiny", "task_type": "SEQ_CLS"}
    for name, layer in adapter.factors.items():
        assert torch.equal(again.factors[name].a, layer.a)
        assert torch.equal(again.factors[name].b, layer.b)
    assert again.head.keys() == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_into_float32(tmp_path, dtype):
    """P13: bf16 and fp16 tensors give the dW of exactly these numbers, in float32."""
    directory = saved_by_peft(tmp_path)
    tensors = rewrite(directory, lambda tensors: {k: t.to(dtype) for k, t in tensors.items()})
    adapter = load_lora(directory)
    name = "bert.encoder.layer.0.attention.self.query"
    prefix = f"base_model.model.{name}.lora_"
    expected = 2 * tensors[f"{prefix}B.weight"].float() @ tensors[f"{prefix}A.weight"].float()
    assert adapter.factors[name].a.dtype == torch.float32
    assert torch.allclose(adapter.factors[name].delta_weight(), expected, atol=1e-6)


def saved_by_peft(directory, **options):
    peft_model(tiny_bert, BERT_TARGETS, {"r": 4, "lora_alpha": 8, **options}).save_pretrained(
        directory
    )
    return directory


def rewrite(directory, change):
    path = directory / "adapter_model.safetensors"
    tensors = change(load_file(path))
    save_file(tensors, path, {"format": "pt"})
    return tensors


def reconfigure(directory, **options):
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | options))


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"bias": "all"},
        {"lora_bias": True},
        {"megatron_config": {"hidden_size": 8}},
        {"layer_replication": [[0, 1]]},
        {"trainable_token_indices": [1]},
        {"target_parameters": ["experts.gate_up_proj"]},
        {"alora_invocation_tokens": [5]},
        {"init_lora_weights": "pissa"},
        {"an_option_of_next_year": {"x": 1}},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_that_two_factors_cannot_say_are_refused(tmp_path, options):
    """Every option that would change what the tensors mean, also one not known yet, is named."""
    directory = saved_by_peft(tmp_path)
    reconfigure(directory, **options)
    with pytest.raises(AdapterFormatError, match=next(iter(options))) as caught:
        load_lora(directory)
    assert caught.value.path.endswith("adapter_config.json")


def test_real_dora_and_embedding_adapters_are_refused(tmp_path):
    """What peft really writes for DoRA, and for LoRA on embeddings, is refused."""
    with pytest.raises(AdapterFormatError, match="use_dora"):
        load_lora(saved_by_peft(tmp_path / "dora", use_dora=True))
    model = peft.get_peft_model(
        tiny_bert(), peft.LoraConfig(target_modules=["position_embeddings"])
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(tmp_path / "embedding")
    with pytest.raises(AdapterFormatError, match="lora_embedding_A"):
        load_lora(tmp_path / "embedding")


KEY = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_B.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: {k: t for k, t in tensors.items() if k != KEY},
            r"missing keys are bert\.encoder\.layer\.0.*lora_B",
        ),
        (lambda tensors: tensors | {"stray": torch.zeros(2)}, "unexpected keys are stray"),
        (lambda _: {}, r"missing keys are \*\.lora_A\.weight"),
        (
            lambda tensors: tensors | {KEY: torch.zeros(32, 3)},
            r"lora_B \(32, 3\), its config says rank 4",
        ),
        (
            lambda tensors: {k: t[..., None, None] for k, t in tensors.items()},
            "only linear layers",
        ),
    ],
    ids=["missing", "unexpected", "empty", "rank", "convolution"],
)
def test_tensors_that_do_not_fit_the_config_are_refused(tmp_path, change, message):
    """A key too few or too many, another rank than the config's, or a convolution is refused."""
    directory = saved_by_peft(tmp_path)
    rewrite(directory, change)
    with pytest.raises(AdapterFormatError, match=message):
        load_lora(directory)


def test_a_promised_head_must_be_there(tmp_path):
    """modules_to_save without their tensors are missing keys."""
    directory = saved_by_peft(tmp_path)
    reconfigure(directory, modules_to_save=["classifier"])
    with pytest.raises(AdapterFormatError, match=r"missing keys are classifier\.\*"):
        load_lora(directory)


def test_nan_is_refused(tmp_path):
    """A NaN in a checkpoint is found at the door."""
    directory = saved_by_peft(tmp_path)
    rewrite(directory, lambda tensors: tensors | {KEY: torch.full((32, 4), math.nan)})
    with pytest.raises(NotFinite, match="side b: 128 of 128"):
        load_lora(directory)


def test_what_is_no_lora_directory_says_what_it_is(tmp_path):
    """No config, no JSON, another PEFT method, no tensors, a pickle: each has its message."""
    with pytest.raises(AdapterFormatError, match="is no config of a PEFT LoRA adapter"):
        load_lora(tmp_path / "nowhere")
    config = tmp_path / "adapter_config.json"
    config.write_text("{")
    with pytest.raises(AdapterFormatError, match="is no config of a PEFT LoRA adapter"):
        load_lora(tmp_path)
    config.write_text('{"peft_type": "IA3"}')
    with pytest.raises(AdapterFormatError, match="IA3"):
        load_lora(tmp_path)
    config.write_text('{"peft_type": "LORA"}')
    with pytest.raises(AdapterFormatError, match="cannot be read as safetensors"):
        load_lora(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(AdapterFormatError, match="a pickle"):
        load_lora(tmp_path)


def test_what_peft_cannot_say_is_not_written(tmp_path):
    """An adapter without layers, of rank 0, or with a head in no module is refused, and nothing written."""
    layer = LayerFactors(torch.ones(4, 1), torch.ones(3, 1))
    nothing = LayerFactors(torch.ones(4, 0), torch.ones(3, 0))
    for adapter, message in (
        (LoraAdapter({}), "needs layers"),
        (LoraAdapter({"q": nothing}), "rank 1 or more"),
        (LoraAdapter({"q": layer}, {"weight": torch.ones(2)}), "head_module"),
    ):
        with pytest.raises(AdapterFormatError, match=message):
            save_lora(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("make", [tiny_bert, tiny_gpt2])
def test_a_task_exported_to_peft_computes_the_same_logits(make, tmp_path):
    """A task of a subspace, exported with its head, gives peft our logits to 1e-5."""
    model = make()
    targets = BERT_TARGETS if make is tiny_bert else GPT2_TARGETS
    subspace = subspace_from_adapters(
        [random_adapter(find_targets(model, targets), seed) for seed in range(3)], num_factors=5
    )
    said = random_coefficients(subspace)
    with inject(model, subspace) as injected:
        head = Head()
        if make is tiny_bert:
            torch.nn.init.normal_(model.classifier.weight, std=0.5)
            head = Head({n: p.detach().clone() for n, p in model.classifier.named_parameters()})
        injected.set_coefficients("t", said)
        injected.activate("t")
        expected = logits(model)
    adapter = lora_from_task(subspace, said, head, head_module="classifier")
    save_lora(adapter, tmp_path, fan_in_fan_out=make is tiny_gpt2)
    loaded = peft.PeftModel.from_pretrained(make(), tmp_path).eval()
    assert torch.allclose(logits(loaded), expected, atol=1e-5)
    assert not torch.allclose(logits(make()), expected, atol=1e-2)


def random_adapter(shapes, seed=0, ranks=(2, 3)):
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for index, (name, shape) in enumerate(shapes.items()):
        r = ranks[index % len(ranks)]
        factors[name] = LayerFactors(
            torch.randn(shape.in_features, r, generator=generator),
            torch.randn(shape.out_features, r, generator=generator),
        )
    return LoraAdapter(factors, {"classifier.bias": torch.ones(2)})


def test_a_subspace_from_adapters_says_them_exactly():
    """With enough factors every adapter, mixed ranks or not, is reconstructed."""
    shapes = find_targets(tiny_bert(), BERT_TARGETS)
    adapters = [random_adapter(shapes, seed) for seed in range(3)]
    subspace = subspace_from_adapters(adapters)
    for adapter in adapters:
        again = reconstruct(subspace, project(subspace, adapter.factors))
        for name, layer in adapter.factors.items():
            assert torch.allclose(again[name].delta_weight(), layer.delta_weight(), atol=1e-4)


@pytest.mark.parametrize("start", ["empty", "another adapter"])
def test_an_adapter_becomes_an_update_that_loses_nothing(start):
    """As an update an adapter has its dW exactly, whatever the subspace already says."""
    shapes = find_targets(tiny_bert(), BERT_TARGETS)
    adapter = random_adapter(shapes, seed=1)
    subspace = (
        Subspace.empty(shapes)
        if start == "empty"
        else subspace_from_adapters([random_adapter(shapes)])
    )
    update = update_from_lora(adapter, "imported", subspace=subspace)
    assert (update.task_id, update.base_version) == ("imported", subspace.version)
    assert update.update_id != update_from_lora(adapter, "imported", subspace=subspace).update_id
    assert torch.equal(update.head.tensors["classifier.bias"], torch.ones(2))
    for name, layer in update.layers.items():
        factors = LayerFactors(
            *(factor_of(subspace.layers[name][side].leading, said) for side, said in layer)
        )
        expected = adapter.factors[name].delta_weight()
        assert torch.allclose(factors.delta_weight(), expected, atol=1e-5)
    outcome = merge(subspace, {}, [update])
    served = reconstruct(outcome.subspace, outcome.tasks["imported"].served(outcome.subspace))
    for name, layer in adapter.factors.items():
        assert torch.allclose(served[name].delta_weight(), layer.delta_weight(), atol=1e-4)


def test_an_adapter_inside_the_subspace_needs_no_temporary_factors():
    """What the subspace says already is coefficients alone."""
    shapes = find_targets(tiny_bert(), BERT_TARGETS)
    adapter = random_adapter(shapes)
    update = update_from_lora(adapter, "t", subspace=subspace_from_adapters([adapter]))
    assert {side.num_temporary for layer in update.layers.values() for _, side in layer} == {0}


def test_an_adapter_of_other_layers_is_refused():
    """Layers that differ from the subspace's are an error that names one."""
    shapes = find_targets(tiny_bert(), BERT_TARGETS)
    subspace = subspace_from_adapters([random_adapter(shapes)])
    fewer = random_adapter(dict(list(shapes.items())[1:]))
    with pytest.raises(ShapeMismatch, match="absent"):
        update_from_lora(fewer, "t", subspace=subspace)
    with pytest.raises(ShapeMismatch):
        subspace_from_adapters([random_adapter(shapes), fewer])
