"""Tiny real models, built from their configs, and subspaces that fit them."""

import pytest
import torch

transformers = pytest.importorskip("transformers")

from share_dist.adapters import find_targets  # noqa: E402  after importorskip
from share_dist.core.values import (  # noqa: E402
    Basis,
    Coefficients,
    LayerCoefficients,
    LayerSubspace,
    Subspace,
)

uses_peft = pytest.mark.filterwarnings(
    # peft 0.21 reads a property that transformers 5.23 has renamed
    "ignore:.*is_gradient_checkpointing:FutureWarning"
)


@pytest.fixture(autouse=True)
def _one_thread_and_a_fixed_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def tiny_bert(num_labels=3):
    torch.manual_seed(7)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=20,
        num_labels=num_labels,
        initializer_range=0.2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.BertForSequenceClassification(config).eval()


def tiny_gpt2():
    torch.manual_seed(8)
    config = transformers.GPT2Config(
        vocab_size=50,
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=20,
        n_inner=48,
        initializer_range=0.2,
    )
    return transformers.GPT2LMHeadModel(config).eval()


def tokens(rows=4, length=9):
    return torch.randint(0, 50, (rows, length), generator=torch.Generator().manual_seed(3))


def logits(model, rows=4):
    with torch.no_grad():
        return model(tokens(rows)).logits


@pytest.fixture
def bert():
    return tiny_bert()


@pytest.fixture
def gpt2():
    return tiny_gpt2()


BERT_TARGETS = ["query", "value"]
GPT2_TARGETS = ["c_attn", "mlp.c_proj"]


def random_subspace(shapes, num_factors=6, version=1, seed=0):
    """Orthonormal bases that no task has shaped."""
    generator = torch.Generator().manual_seed(seed)

    def basis(features):
        vectors = torch.linalg.qr(torch.randn(features, num_factors, generator=generator)).Q
        energies = torch.linspace(2, 1, num_factors, dtype=torch.float64)
        return Basis(vectors.contiguous(), energies, num_factors)

    return Subspace(
        {
            name: LayerSubspace(basis(shape.in_features), basis(shape.out_features))
            for name, shape in shapes.items()
        },
        version=version,
    )


def random_coefficients(subspace, pseudo_rank=3, seed=0, scale=0.5):
    generator = torch.Generator().manual_seed(seed)

    def draw(basis):
        return scale * torch.randn(basis.num_factors, pseudo_rank, generator=generator)

    return Coefficients(
        {
            name: LayerCoefficients(draw(layer.a), draw(layer.b))
            for name, layer in subspace.layers.items()
        },
        version=subspace.version,
    )


@pytest.fixture
def bert_subspace(bert):
    return random_subspace(find_targets(bert, BERT_TARGETS))


@pytest.fixture
def gpt2_subspace(gpt2):
    return random_subspace(find_targets(gpt2, GPT2_TARGETS))
