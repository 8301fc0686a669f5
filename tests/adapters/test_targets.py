"""Which layers are chosen, and what is said when none is."""

import pytest
import torch
from torch import nn

from share_dist.adapters import AdapterConfig, find_targets
from share_dist.core.values import LayerShape
from share_dist.errors import ConfigError
from tests.adapters.conftest import tiny_bert, tiny_gpt2, uses_peft


def test_names_choose_whole_names_and_last_parts(bert):
    """A listed name chooses each layer of which it is the whole name or the last parts."""
    whole = "bert.encoder.layer.1.attention.self.key"
    chosen = find_targets(bert, ["query", "attention.output.dense", whole])
    assert list(chosen) == [
        "bert.encoder.layer.0.attention.output.dense",
        "bert.encoder.layer.0.attention.self.query",
        "bert.encoder.layer.1.attention.output.dense",
        "bert.encoder.layer.1.attention.self.key",
        "bert.encoder.layer.1.attention.self.query",
    ]
    assert chosen[whole] == LayerShape(32, 32)


def test_a_string_is_a_pattern_over_the_whole_name(bert):
    """A string is a regular expression that must match the whole name."""
    chosen = find_targets(bert, r".*\.layer\.0\..*(query|value)")
    assert [name.rpartition(".")[2] for name in chosen] == ["query", "value"]
    with pytest.raises(ConfigError, match="over the whole name"):
        find_targets(bert, "query")


def test_conv1d_features_are_not_swapped(gpt2):
    """Conv1D stores (in, out); its shape is read as (in, out) and not as a Linear's."""
    chosen = find_targets(gpt2, ["c_attn"])
    assert set(chosen.values()) == {LayerShape(32, 96)}


def test_layer_indices_filter(gpt2):
    """Only layers whose first number is asked for are chosen."""
    assert list(find_targets(gpt2, ["c_attn"], layers=[1])) == ["transformer.h.1.attn.c_attn"]


def test_all_linear_leaves_heads_out():
    """All linear layers are chosen, the classifier and the output embeddings are not."""
    bert = find_targets(tiny_bert(), "all-linear")
    assert "bert.encoder.layer.0.intermediate.dense" in bert
    assert "classifier" not in bert
    gpt2 = find_targets(tiny_gpt2(), "all-linear")
    assert len(gpt2) == 2 * 4
    assert "lm_head" not in gpt2


@uses_peft
def test_all_linear_is_what_peft_chooses(bert):
    """What "all-linear" chooses is what peft's "all-linear" chooses for the same model."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules="all-linear", task_type="SEQ_CLS")
    wrapped = peft.get_peft_model(tiny_bert(), config)
    adapted = {
        name.removeprefix("base_model.model.").removesuffix(".lora_A")
        for name, _ in wrapped.named_modules()
        if name.endswith(".lora_A")
    }
    assert find_targets(bert, "all-linear").keys() == adapted


@pytest.mark.parametrize("targets", [["query", "vlaue"], ["vlaue"]])
def test_an_unknown_name_is_refused_with_the_nearest(bert, targets):
    """One name that matches nothing is an error even beside good ones, and the nearest is named."""
    with pytest.raises(ConfigError, match=r"'vlaue' matches no linear layer.*value"):
        find_targets(bert, targets)


def test_an_unknown_layer_index_is_refused(bert):
    """An index that no target has is an error that lists the indices there are."""
    with pytest.raises(ConfigError, match=r"layers=\[7\].*\[0, 1\]"):
        find_targets(bert, ["query"], layers=[0, 7])


def test_a_weight_that_is_read_and_never_called_is_no_target():
    """nn.MultiheadAttention never calls its out_proj, so it cannot be adapted and is not offered."""
    model = nn.TransformerEncoderLayer(d_model=8, nhead=2, dim_feedforward=12)
    assert set(find_targets(model, "all-linear")) == {"linear1", "linear2"}


def test_a_model_without_linear_layers_says_so():
    """A model that has nothing to adapt is refused in words."""
    with pytest.raises(ConfigError, match="it has no linear layer"):
        find_targets(nn.Sequential(nn.ReLU()), "all-linear")


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"targets": []}, "targets"),
        ({"targets": "("}, "targets"),
        ({"layers": []}, "layers"),
        ({"layers": [-1]}, "layers"),
        ({"pseudo_rank": 0}, "pseudo_rank"),
        ({"num_temporary": -1}, "num_temporary"),
    ],
)
def test_a_config_that_cannot_work_names_its_field(fields, key):
    """Each unusable field is refused when the config is made, by its name."""
    with pytest.raises(ConfigError) as caught:
        AdapterConfig(**fields)
    assert caught.value.key == key


def test_find_targets_leaves_the_model_alone(bert):
    """Choosing changes no parameter's requires_grad."""
    find_targets(bert, "all-linear")
    assert all(parameter.requires_grad for parameter in bert.parameters())
    assert isinstance(bert, torch.nn.Module)
