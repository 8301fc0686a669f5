"""Modalities: how inputs of one kind become a batch, and a model's output one vector per row."""

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from worker.rows import Content
from worker.stream import TaskType

Batch: TypeAlias = dict[str, Tensor]
"""Keyword arguments of the model's forward call."""


class Modality(Protocol):
    """One kind of input."""

    example: Content
    """Any input, to find out what the model does with one."""

    def encode(self, inputs: Sequence[Content]) -> list[Tensor]:
        """Prepare every input once; the first dimension of each is its length."""
        ...

    def collate(self, encoded: Sequence[Tensor]) -> Batch:
        """Put prepared inputs into one batch."""
        ...

    def pool(self, output: Any, batch: Batch) -> Tensor:
        """Make one vector per row of what the model computed, ``(rows, features)``."""
        ...


class TextModality:
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
        """Tokenise."""
        encoded = self._tokenizer(list(inputs), truncation=True, max_length=self._max_tokens)
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


class ImageModality:
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


def load_modality(task_type: TaskType, location: str, max_tokens: int) -> Modality:
    """Load a model's tokenizer or image processor."""
    import transformers

    if task_type == "text-classification":
        return TextModality(transformers.AutoTokenizer.from_pretrained(location), max_tokens)
    processor: Any = transformers.AutoImageProcessor
    return ImageModality(processor.from_pretrained(location))
