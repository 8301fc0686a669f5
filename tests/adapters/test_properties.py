"""What a subspace inside a model satisfies, for both metrics and every spectrum of what made the subspace."""

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from share_dist.adapters import (
    find_targets,
    inject,
    load_lora,
    load_subspace,
    load_task,
    save_subspace,
    save_task,
)
from share_dist.core.subspace import project, reconstruct, subspace_from_factors
from share_dist.core.values import Head, LayerFactors
from share_dist.errors import AdapterFormatError
from tests.adapters.conftest import BERT_TARGETS, logits, tiny_bert, tokens, uses_peft
from tests.adapters.test_lora import merged_changes, peft_model
from tests.strategies import adapters

# a model is given back by every example as it was
properties = settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
drawn_adapters = adapters(
    count=3, dtype=torch.float32, shapes=find_targets(tiny_bert(), BERT_TARGETS)
)
energies = st.sampled_from([0.5, 0.9, 1.0])
"""Shares of energy: every side gets a ``k`` of its own."""


def of_norm_one(factors):
    """The same directions and spectrum, so that a model does not overflow."""
    scales = {name: float(layer.delta_weight().norm()) ** 0.5 for name, layer in factors.items()}
    return {
        name: LayerFactors(layer.a / scales[name], layer.b / scales[name])
        for name, layer in factors.items()
    }


def subspace_of(drawn, energy):
    return subspace_from_factors(drawn.factors, energy=energy, metric=drawn.metric)


def said_by(drawn, subspace):
    """The first adapter, as the subspace says it."""
    return project(subspace, of_norm_one(drawn.factors[0]))


@properties
@given(drawn=drawn_adapters, energy=energies, seed=st.integers(0, 100))
def test_p10_a_cold_start_computes_the_base(bert, drawn, energy, seed):
    """P10: the logits are the base's, bit for bit, whatever the bases are."""
    expected = logits(bert)
    with inject(bert, subspace_of(drawn, energy)) as injected:
        injected.add_task("t", pseudo_rank=4, num_temporary=2, seed=seed)
        injected.activate("t")
        assert torch.equal(logits(bert), expected)


@properties
@given(drawn=drawn_adapters, energy=energies)
def test_p10_a_warm_start_computes_the_stated_combination(bert, drawn, energy):
    """P10: with start coefficients it is ``W0 + V_B E_B (V_A E_A).T``; the temporary factors say nothing yet."""
    subspace = subspace_of(drawn, energy)
    said = said_by(drawn, subspace)
    changed = tiny_bert()
    with torch.no_grad():
        for name, layer in reconstruct(subspace, said).items():
            changed.get_submodule(name).weight += layer.delta_weight()
    with inject(bert, subspace) as injected:
        injected.add_task("t", num_temporary=2, start=said)
        injected.activate("t")
        assert torch.allclose(logits(bert), logits(changed), atol=1e-5)


@properties
@given(drawn=drawn_adapters, energy=energies)
def test_p11_what_is_saved_and_loaded_computes_the_same(bert, drawn, energy):
    """P11: subspace and task come back from the disk with bit-identical logits; a key too many or too few raises."""
    subspace = subspace_of(drawn, energy)
    said = said_by(drawn, subspace)
    with tempfile.TemporaryDirectory() as folder:
        spaces, tasks = Path(folder) / "s.safetensors", Path(folder) / "t.safetensors"
        save_subspace(spaces, subspace)
        save_task(tasks, said, Head())
        found = []
        for space, coefficients in ((subspace, said), (load_subspace(spaces), load_task(tasks)[0])):
            with inject(bert, space) as injected:
                injected.set_coefficients("t", coefficients)
                injected.activate("t")
                found.append(logits(bert))
        assert torch.equal(*found)
        for path, load in ((spaces, load_subspace), (tasks, load_task)):
            tensors = load_file(path)
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
            fewer = dict(list(tensors.items())[1:])
            for damaged, message in ((fewer, "missing"), ({**tensors, "x": torch.zeros(1)}, "unexpected")):  # fmt: skip
                save_file(damaged, path, metadata)
                with pytest.raises(AdapterFormatError, match=f"{message} keys"):
                    load(path)


@properties
@given(drawn=drawn_adapters, energy=energies, p=st.integers(1, 6), f=st.integers(0, 3))
def test_p12_trainable_counts_are_the_formula_and_the_rest_is_frozen(bert, drawn, energy, p, f):
    """P12: ``f (n + d) + 2 f p + (k_a + k_b) p`` a layer; after a real step all else is bit-identical."""
    subspace = subspace_of(drawn, energy)
    before = {name: tensor.clone() for name, tensor in bert.state_dict().items()}
    bases = {name: (layer.a.leading.clone(), layer.b.leading.clone()) for name, layer in subspace.layers.items()}  # fmt: skip
    with inject(bert, subspace) as injected:
        injected.add_task("t", pseudo_rank=p, num_temporary=f, seed=0)
        injected.activate("t")
        trainable = injected.trainable_parameters("t")
        expected = sum(
            f * sum(layer.shape) + 2 * f * p + (layer.a.num_factors + layer.b.num_factors) * p
            for layer in subspace.layers.values()
        )
        assert sum(each.numel() for each in trainable) == expected
        optimizer = torch.optim.SGD(trainable, lr=0.1)
        bert(tokens()).logits.square().mean().backward()
        optimizer.step()
        for name, (a, b) in bases.items():
            assert torch.equal(injected.subspace.layers[name].a.leading, a)
            assert torch.equal(injected.subspace.layers[name].b.leading, b)
    assert all(torch.equal(bert.state_dict()[name], tensor) for name, tensor in before.items())


@uses_peft
@properties
@given(
    drawn=drawn_adapters,
    alpha=st.sampled_from([2, 8, 13]),
    use_rslora=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_p13_the_change_that_we_read_is_the_one_that_peft_merges(drawn, alpha, use_rslora, dtype):
    """P13: LoRA tensors of every spectrum, in three dtypes; and the subspace made of them says them again."""
    assume(drawn.spectrum != "ill-scaled" or dtype != torch.float16)  # which cannot hold it
    options = {"r": 4, "lora_alpha": alpha, "use_rslora": use_rslora}
    model = peft_model(tiny_bert, BERT_TARGETS, options)
    tensors = dict(model.named_parameters())
    with torch.no_grad():
        for name, layer in of_norm_one(drawn.factors[0]).items():
            prefix = f"base_model.model.{name}"
            # what the dtype holds, so that both read the same numbers
            tensors[f"{prefix}.lora_A.default.weight"].copy_(layer.a.mT.to(dtype))
            tensors[f"{prefix}.lora_B.default.weight"].copy_(layer.b.to(dtype))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        path = Path(folder) / "adapter_model.safetensors"
        save_file({name: each.to(dtype) for name, each in load_file(path).items()}, path)
        adapter = load_lora(folder)
    _, changes = merged_changes(model, tiny_bert())
    subspace = subspace_from_factors([adapter.factors], metric=drawn.metric)
    again = reconstruct(subspace, project(subspace, adapter.factors))
    for name, layer in adapter.factors.items():
        whole = float(changes[name].norm())
        assert (layer.delta_weight() - changes[name]).norm() < 2e-6 * max(1.0, whole)
        assert (again[name].delta_weight() - changes[name]).norm() < 1e-5 * max(1.0, whole)
