"""The models of published streams, by their shapes: random weights of full width, one real step, one real merge."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import transformers
from torch import nn

from share_dist.adapters import LoraAdapter, find_targets, inject, update_from_lora
from share_dist.adapters.lora import subspace_from_adapters
from share_dist.core.merge import merge
from share_dist.core.values import LayerFactors, Subspace, TaskUpdate

pytestmark = pytest.mark.system


class CrossAttention(nn.Module):
    """Projections of one attention of a text-to-image model: pictures ask, a text answers."""

    def __init__(self, features: int, context: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(features, features, bias=False)
        self.to_k = nn.Linear(context, features, bias=False)
        self.to_v = nn.Linear(context, features, bias=False)
        self.to_out = nn.Linear(features, features)

    def forward(self, pictures: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        mixed = nn.functional.scaled_dot_product_attention(
            self.to_q(pictures), self.to_k(text), self.to_v(text)
        )
        return pictures + self.to_out(mixed)


class TextToImage(nn.Module):
    """The widths of Stable Diffusion XL's attentions, one of each."""

    def __init__(self) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(CrossAttention(each, 2048) for each in (640, 1280))
        self.widen = nn.Linear(640, 1280)

    def forward(self) -> torch.Tensor:
        text = torch.randn(1, 77, 2048)
        narrow = self.attentions[0](torch.randn(1, 64, 640), text)
        return self.attentions[1](self.widen(narrow), text)


def roberta() -> nn.Module:
    config = transformers.RobertaConfig(max_position_embeddings=514, type_vocab_size=1)
    return transformers.RobertaModel(config, add_pooling_layer=False)


def vit() -> nn.Module:
    return transformers.ViTModel(transformers.ViTConfig(), add_pooling_layer=False)


def mistral() -> nn.Module:
    # one layer of 32: all have its shapes; few words, which no adapter touches
    return transformers.MistralModel(
        transformers.MistralConfig(num_hidden_layers=1, vocab_size=512)
    )


def _of_words(model: nn.Module) -> torch.Tensor:
    return model(input_ids=torch.randint(3, 500, (2, 16))).last_hidden_state


@dataclass(frozen=True)
class Shapes:
    """One published stream: its model, adapted layers, rank of its adapters, ``k`` and ``p``."""

    model: Callable[[], nn.Module]
    run: Callable[[nn.Module], torch.Tensor]
    targets: list[str]
    widths: set[tuple[int, int]]
    num_layers: int
    rank: int
    num_factors: int
    pseudo_rank: int


STREAMS = {
    "GLUE, RoBERTa-base": Shapes(
        roberta, _of_words, ["query", "value"], {(768, 768)}, 24, 32, 32, 8
    ),
    "ten steps of pictures, ViT-B": Shapes(
        vit,
        lambda model: model(pixel_values=torch.randn(2, 3, 224, 224)).last_hidden_state,
        ["q_proj", "v_proj"],
        {(768, 768)},
        24,
        8,
        32,
        8,
    ),
    "Lots-of-LoRAs, Mistral-7B": Shapes(
        mistral,
        _of_words,
        ["q_proj", "k_proj", "v_proj"],
        {(4096, 4096), (4096, 1024)},
        3,
        16,
        64,
        16,
    ),
    "text-to-image, SDXL": Shapes(
        TextToImage,
        lambda model: model(),
        ["to_q", "to_k", "to_v", "to_out"],
        {(640, 640), (2048, 640), (1280, 1280), (2048, 1280)},
        8,
        16,
        32,
        8,
    ),
}


def adapters_of(shapes, rank, count):
    """LoRAs as others would publish them: random, half of their directions their own."""
    torch.manual_seed(1)
    shared = {
        name: LayerFactors(torch.randn(d, rank // 2), torch.randn(n, rank // 2))
        for name, (d, n) in shapes.items()
    }

    def one():
        return LoraAdapter(
            {
                name: LayerFactors(
                    torch.cat([shared[name].a, torch.randn(d, rank // 2)], dim=1) / d,
                    torch.cat([shared[name].b, torch.randn(n, rank // 2)], dim=1),
                )
                for name, (d, n) in shapes.items()
            }
        )

    return [one() for _ in range(count)]


@pytest.mark.parametrize("name", STREAMS)
def test_a_step_and_a_merge_at_full_width(name):
    """Learnt from data in an empty subspace, then merged with a published adapter: loss falls, all stays finite and orthonormal."""
    stream = STREAMS[name]
    torch.manual_seed(0)
    model = stream.model().eval()
    shapes = find_targets(model, stream.targets)
    assert len(shapes) == stream.num_layers
    assert {tuple(each) for each in shapes.values()} == stream.widths
    empty = Subspace.empty(shapes)
    with inject(model, empty, pseudo_rank=stream.pseudo_rank, num_temporary=4) as injected:
        injected.add_task("learnt")
        injected.activate("learnt")
        optimizer = torch.optim.AdamW(injected.trainable_parameters("learnt"), lr=1e-3)
        losses = []
        for _ in range(2):
            torch.manual_seed(2)
            found = stream.run(injected.model)
            loss = (found - torch.randn(found.shape)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        learnt = TaskUpdate(
            update_id="u-learnt",
            task_id="learnt",
            base_version=0,
            layers=injected.layer_updates("learnt"),
        )
    assert losses[1] < losses[0]
    published = [
        update_from_lora(each, f"published-{number}", subspace=empty)
        for number, each in enumerate(adapters_of(shapes, stream.rank, 2))
    ]
    outcome = merge(empty, {}, [learnt, *published], num_factors=stream.num_factors)
    assert set(outcome.tasks) == {"learnt", "published-0", "published-1"}
    for layer in outcome.subspace.layers.values():
        for _, basis in layer:
            assert basis.num_factors <= stream.num_factors
            gram = basis.vectors.mT @ basis.vectors
            assert torch.allclose(gram, torch.eye(len(gram)), atol=1e-5)


@pytest.mark.parametrize("name", STREAMS)
def test_a_subspace_of_published_adapters_says_a_new_one(name):
    """Adapters only: the subspace of four says what a fifth shares with them, and not what is its own."""
    stream = STREAMS[name]
    shapes = find_targets(stream.model(), stream.targets)
    adapters = adapters_of(shapes, stream.rank, 5)
    subspace = subspace_from_adapters(adapters[:4], stream.num_factors)
    for layer, factors in adapters[4].factors.items():
        basis = subspace.layers[layer].a.leading
        shared, own = factors.a.split(stream.rank // 2, dim=1)
        said = [(basis.mT @ part).norm() / part.norm() for part in (shared, own)]
        assert said[0] > 0.9
        assert said[1] < 0.5
