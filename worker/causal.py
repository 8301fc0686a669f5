"""Causal language modelling: the frozen model's own head over the vocabulary, told completions of prompts."""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from share_dist.errors import StreamError
from worker.objective import IGNORED, Scores, error_of_share, units
from worker.stream import CausalMetric

_AT_ONCE = 1024
"""Tokens whose logits are formed together: there are as many as words in the vocabulary."""


class VocabularyHead(nn.Module):
    """
    The output layer that belongs to the frozen model: nothing in it is trained, and it travels with no task.

    Args:
        output: The model's own output layer, or its input embeddings where the two are tied.
    """

    def __init__(self, output: Any) -> None:
        super().__init__()
        # in a tuple torch does not see them: they are no parameters of this head
        self._frozen = (output.weight.detach(), getattr(output, "bias", None))

    def __deepcopy__(self, _memo: object) -> "VocabularyHead":
        return self

    def forward(self, features: Tensor) -> Tensor:
        """Logits, ``(tokens, vocabulary)``."""
        weight, bias = self._frozen
        return nn.functional.linear(features.to(weight.dtype), weight, bias).float()


def load_vocabulary(model: Any, location: str) -> VocabularyHead:
    """
    Find the output layer of a causal language model.

    Args:
        model: The model without a head, where it will stay.
        location: What it was loaded from.

    Raises:
        StreamError: The model is none, or does more to its logits than a linear layer.
    """
    import transformers

    config = model.config
    if any(getattr(config, name, None) for name in ("final_logit_softcapping", "logits_scaling", "logit_scale")):  # fmt: skip
        raise StreamError(
            f"{type(model).__name__} scales its logits, which tasks of type causal-lm do not know: "
            "take another model"
        )
    try:
        whole: Any = transformers.AutoModelForCausalLM.from_pretrained(location)
    except ValueError as error:
        raise StreamError(
            f"{location} is no causal language model, which tasks of type causal-lm need: {error}"
        ) from error
    is_tied = whole.get_output_embeddings().weight is whole.get_input_embeddings().weight
    output = model.get_input_embeddings() if is_tied else whole.get_output_embeddings()
    return VocabularyHead(output.to(model.device))


class CausalLanguage:
    """
    Cross-entropy of the next token, over the completion only; scored by shares of what is right.

    Args:
        head: The frozen model's own.
        metric: By which score tasks are compared and epochs are chosen.
    """

    penalties: tuple[float, ...] = (1.0,)

    def __init__(self, head: VocabularyHead, metric: CausalMetric = "token_accuracy") -> None:
        self._head = head
        self._metric = metric

    def loss(self, head: nn.Module, features: Tensor, labels: Tensor) -> Tensor:
        """Summed cross-entropy."""
        return nn.functional.cross_entropy(head(features), units(labels), reduction="sum")

    def mass(self, labels: Tensor) -> float:
        """Tokens of completions."""
        return max(1, len(units(labels)))

    def score(self, head: nn.Module, features: Tensor, labels: Tensor) -> float:
        """Share of tokens, or of completions, that are the most likely ones."""
        return self.scores(head, features, labels).main

    def standard_error(self, score: float, labels: Tensor) -> float:
        """That of a share of so many rows: tokens of one row are no separate witnesses."""
        return error_of_share(score, len(labels))

    @torch.no_grad()
    def scores(self, head: nn.Module, features: Tensor, labels: Tensor) -> Scores:
        """
        Share of right tokens, perplexity, and the share of completions that are right to the last token.

        The most likely token at every place of the true completion is what greedy
        generation says for as long as it is right: exact matches are those of generation.
        """
        found, loss = units(labels), 0.0
        right = torch.zeros(len(found), dtype=torch.bool)
        for part in _parts(len(found)):
            logits = head(features[part])
            right[part] = (logits.argmax(-1).cpu() == found[part]).cpu()
            targets = found[part].to(logits.device)
            loss += float(nn.functional.cross_entropy(logits, targets, reduction="sum"))
        return self._scores(right, labels, loss, _exact(right, labels))

    def simplest(self, train_labels: Tensor, test_labels: Tensor) -> Scores:
        """Of always saying the most frequent token or completion, its perplexity that of the tokens' frequencies."""
        counts = Counter(units(train_labels).tolist())
        ((majority, _),) = counts.most_common(1)
        found = units(test_labels)
        # a token that was never seen counts as seen once
        total = sum(counts.values()) + len(set(found.tolist()) - set(counts))
        loss = sum(-math.log(counts.get(each, 1) / total) for each in found.tolist())
        ((usual, _),) = Counter(_completions(train_labels)).most_common(1)
        same = [float(each == usual) for each in _completions(test_labels)]
        return self._scores(found == majority, test_labels, loss, sum(same) / len(same))

    def _scores(self, right: Tensor, labels: Tensor, loss: float, exact_match: float) -> Scores:
        """Of right tokens, their summed loss, and the share of completions that are right."""
        values = {
            "token_accuracy": float(right.float().mean()) if len(right) else 0.0,
            "perplexity": math.exp(min(loss / self.mass(labels), 100.0)),
            "exact_match": exact_match,
        }
        return Scores(self._metric, values)

    def fit_head(
        self,
        features: Tensor,  # noqa: ARG002  # nothing is fitted: the head is there
        labels: Tensor,  # noqa: ARG002
        num_labels: int,  # noqa: ARG002
        penalty: float,  # noqa: ARG002
    ) -> nn.Module:
        """The frozen model's own."""
        return self._head


def _parts(length: int) -> Iterator[slice]:
    return (slice(at, at + _AT_ONCE) for at in range(0, length, _AT_ONCE))


def _exact(right: Tensor, labels: Tensor) -> float:
    """Share of rows of which every token is right."""
    places = torch.ones_like(labels, dtype=torch.bool)
    places[labels != IGNORED] = right
    return float(places.all(1).float().mean())


def _completions(labels: Tensor) -> list[tuple[int, ...]]:
    return [tuple(row[row != IGNORED].tolist()) for row in labels]
