"""Modalities: how inputs of one kind become a batch, and a model's output one vector per row or token."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from worker.objective import IGNORED
from worker.rows import Content, Label
from worker.stream import TaskType

Batch: TypeAlias = dict[str, Tensor]
"""Keyword arguments of the model's forward call, and which vectors are read."""

READ = "is_read"


class Modality(Protocol):
    """One kind of input."""

    example: Content
    """Any input, to find out what the model does with one."""

    def encode(self, inputs: Sequence[Content]) -> list[Tensor]:
        """Prepare every input once; the first dimension of each is its length."""
        ...

    def encode_labelled(
        self, inputs: Sequence[Content], labels: Sequence[Label]
    ) -> tuple[list[Tensor], Tensor]:
        """The same, with the labels of every row's units as :mod:`worker.objective` has them."""
        ...

    def num_units(self, encoded: Tensor) -> int:
        """Vectors that a prepared input gives."""
        ...

    def collate(self, encoded: Sequence[Tensor]) -> Batch:
        """Put prepared inputs into one batch."""
        ...

    def pool(self, output: Any, batch: Batch) -> Tensor:
        """Make vectors of what the model computed, ``(units, features)``, in the order of the rows."""
        ...


class _PerRow(ABC):
    """One vector, and one label, per row."""

    @abstractmethod
    def encode(self, inputs: Sequence[Content]) -> list[Tensor]:
        """Prepare every input once."""

    def encode_labelled(
        self, inputs: Sequence[Content], labels: Sequence[Label]
    ) -> tuple[list[Tensor], Tensor]:
        """A class or a number per row."""
        return self.encode(inputs), torch.tensor(labels)

    def num_units(self, encoded: Tensor) -> int:  # noqa: ARG002  # whatever its length
        """One."""
        return 1


class TextModality(_PerRow):
    """
    Token ids, padded to the longest text of the batch; mean over tokens.

    Args:
        tokenizer: The model's own.
        max_tokens: Texts are cut after so many.
    """

    example: Content = "an example"

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens

    def encode(self, inputs: Sequence[Content]) -> list[Tensor]:
        """Tokenise; two texts with the model's separator between them, the longer one cut first."""
        if not inputs:
            return []
        texts = [each if isinstance(each, tuple) else (each,) for each in inputs]
        columns = [list(column) for column in zip(*texts, strict=True)]
        encoded = self._tokenizer(*columns, truncation=True, max_length=self._max_tokens)
        return [torch.tensor(ids, dtype=torch.long) for ids in encoded["input_ids"]]

    def collate(self, encoded: Sequence[Tensor]) -> Batch:
        """Pad on the right, and mask what is padding."""
        lengths = torch.tensor([len(ids) for ids in encoded])
        padding = self._tokenizer.pad_token_id or 0
        ids = torch.nn.utils.rnn.pad_sequence(
            list(encoded), batch_first=True, padding_value=padding
        )
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        return {"input_ids": ids, "attention_mask": mask.long()}

    def pool(self, output: Any, batch: Batch) -> Tensor:
        """Mean over the tokens that are no padding."""
        hidden: Tensor = output.last_hidden_state
        mask = batch["attention_mask"][..., None].to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)


class _PerToken(TextModality):
    """
    One vector per token that is read.

    A prepared input is ``(tokens, 2)``: ids, and whether the vector there is read.
    """

    def encode(self, inputs: Sequence[Content]) -> list[Tensor]:
        """Tokenise plain texts, of which every token is read."""
        return [_read(ids, torch.ones_like(ids)) for ids in super().encode(inputs)]

    def num_units(self, encoded: Tensor) -> int:
        """Tokens that are read."""
        return int(encoded[:, 1].sum())

    def collate(self, encoded: Sequence[Tensor]) -> Batch:
        """Pad on the right; what is read is no argument of the model."""
        batch = super().collate([each[:, 0] for each in encoded])
        is_read = [each[:, 1].bool() for each in encoded]
        return batch | {READ: torch.nn.utils.rnn.pad_sequence(is_read, batch_first=True)}

    def pool(self, output: Any, batch: Batch) -> Tensor:
        """The vectors of tokens that are read."""
        hidden: Tensor = output.last_hidden_state
        return hidden[batch[READ]]


class TokenModality(_PerToken):
    """Words with a label each, read at the first token of each; words that are cut off are none."""

    def encode_labelled(
        self, inputs: Sequence[Content], labels: Sequence[Label]
    ) -> tuple[list[Tensor], Tensor]:
        """Tokenise words, and label the first token of each that is not cut off."""
        encoded = self._tokenizer(
            [list(words) for words in inputs],
            is_split_into_words=True,
            truncation=True,
            max_length=self._max_tokens,
        )
        rows = [
            _labelled_words(torch.tensor(ids), encoded.word_ids(row), labels[row])
            for row, ids in enumerate(encoded["input_ids"])
        ]
        return [row for row, _ in rows], _padded([found for _, found in rows])


class CompletionModality(_PerToken):
    """
    Prompts and their completions, read where a token of the completion is predicted.

    The end of the text belongs to the completion. Where both are too long, the
    prompt loses its beginning, and the completion its end if it alone is.
    """

    def encode_labelled(
        self, inputs: Sequence[Content], labels: Sequence[Label]
    ) -> tuple[list[Tensor], Tensor]:
        """Tokenise prompts with their completions."""
        rows = [self._row(prompt, end) for prompt, end in zip(inputs, labels, strict=True)]
        return [row for row, _ in rows], _padded([found for _, found in rows])

    def _row(self, prompt: str, completion: Any) -> tuple[Tensor, Tensor]:
        tokenizer = self._tokenizer
        start = tokenizer("")["input_ids"] or [
            tokenizer.bos_token_id or tokenizer.eos_token_id or 0
        ]
        before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        after = tokenizer(completion, add_special_tokens=False)["input_ids"]
        if tokenizer.eos_token_id is not None:
            after = [*after, tokenizer.eos_token_id]
        after = after[: self._max_tokens - len(start)]
        room = self._max_tokens - len(start) - len(after)
        before = [*start, *before[max(0, len(before) - room) :]]
        # the vector of a token says the next one
        ids = torch.tensor([*before, *after[:-1]])
        is_read = torch.arange(len(ids)) >= len(before) - 1
        return _read(ids, is_read), torch.tensor(after)


def _read(ids: Tensor, is_read: Tensor) -> Tensor:
    return torch.stack([ids, is_read.to(ids.dtype)], dim=1)


def _labelled_words(ids: Tensor, words: Sequence[int | None], labels: Any) -> tuple[Tensor, Tensor]:
    is_first = [
        word is not None and word != before
        for before, word in zip([None, *words[:-1]], words, strict=True)
    ]
    found = [labels[word] for word, first in zip(words, is_first, strict=True) if first]
    return _read(ids, torch.tensor(is_first)), torch.tensor(found, dtype=torch.long)


def _padded(labels: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORED)


class ImageModality(_PerRow):
    """
    Pixels as the model's own processor prepares them; mean over positions.

    Args:
        processor: The model's own.
    """

    def __init__(self, processor: Any) -> None:
        from PIL import Image

        self.example: Content = Image.new("RGB", (64, 64))
        self._processor = processor

    def encode(self, inputs: Sequence[Content]) -> list[Tensor]:
        """Resize and normalise."""
        images = [image.convert("RGB") for image in inputs]
        pixels: Tensor = self._processor(images=images, return_tensors="pt")["pixel_values"]
        return list(pixels)

    def collate(self, encoded: Sequence[Tensor]) -> Batch:
        """Stack."""
        return {"pixel_values": torch.stack(list(encoded))}

    def pool(self, output: Any, batch: Batch) -> Tensor:  # noqa: ARG002  # images have no padding
        """Mean over tokens, or over the places of a feature map."""
        hidden: Tensor = output.last_hidden_state
        return hidden.mean(1) if hidden.ndim == 3 else hidden.flatten(2).mean(2)


_TEXTS: dict[TaskType, type[TextModality]] = {
    "text-classification": TextModality,
    "text-regression": TextModality,
    "token-classification": TokenModality,
    "causal-lm": CompletionModality,
}


def load_modality(task_type: TaskType, location: str, max_tokens: int) -> Modality:
    """Load a model's tokenizer or image processor."""
    import transformers

    if task_type != "image-classification":
        tokenizer = transformers.AutoTokenizer.from_pretrained(location)
        return _TEXTS[task_type](tokenizer, max_tokens)
    processor: Any = transformers.AutoImageProcessor
    return ImageModality(processor.from_pretrained(location))
