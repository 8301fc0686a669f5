"""The backbone: a worker's one copy of the frozen model, and batches through it."""

import contextlib
import importlib.util
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from share_dist.adapters import find_targets, load_frozen
from share_dist.commands.kit import require_source
from share_dist.core.values import Fingerprint, LayerShape, Metric
from share_dist.errors import StreamError
from worker.causal import VocabularyHead, load_vocabulary
from worker.modality import READ, Batch, Modality, load_modality
from worker.stream import ModelSettings, Precision, TaskStream, TaskType, TrainingSettings

KIT_PREFIX = "kit:"

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

SCORING_BATCH = 64
"""Rows per batch where no gradient is needed."""


@dataclass(frozen=True)
class Backbone:
    """
    A model whose weights nobody changes.

    Args:
        model: The frozen model, without a head.
        modality: How inputs become its batches.
        modalities: The same, for every type of task of the stream.
        vocabulary: The model's own head over its vocabulary; None where no task needs it.
        shapes: The layers that are adapted.
        device: Where it lies.
        digest: What names its weights.
        precision: Of its products.
    """

    model: nn.Module
    modality: Modality
    shapes: dict[str, LayerShape]
    device: torch.device
    digest: str
    precision: Precision = "fp32"
    modalities: Mapping[TaskType, Modality] = field(default_factory=dict)
    vocabulary: VocabularyHead | None = None

    def reading(self, task_type: TaskType) -> "Backbone":
        """The same model, read as tasks of this type read it."""
        return replace(self, modality=self.modalities[task_type])

    def fingerprint(self, metric: Metric = "delta") -> Fingerprint:
        """What must agree with other workers."""
        return Fingerprint(self.digest, self.shapes, metric)

    def pooled(self, encoded: Sequence[Tensor]) -> Tensor:
        """Run one batch: ``(units, features)``, with gradients where there are any."""
        batch: Batch = {
            name: tensor.to(self.device) for name, tensor in self.modality.collate(encoded).items()
        }
        with self._autocast():
            output = self.model(**{name: each for name, each in batch.items() if name != READ})
        return self.modality.pool(output, batch).float()

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, _DTYPES[self.precision])

    @torch.no_grad()
    def features(self, encoded: Sequence[Tensor]) -> Tensor:
        """
        One vector per unit, in the order of the rows given, as the model computes without dropout.

        Where the device's memory does not suffice, fewer rows go through at once.
        """
        was_training = self.model.training
        self.model.eval()
        order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
        pieces = [
            piece
            for start in range(0, len(order), SCORING_BATCH)
            for piece in self._halving(
                [encoded[index] for index in order[start : start + SCORING_BATCH]]
            )
        ]
        self.model.train(was_training)
        sizes = [self.modality.num_units(encoded[index]) for index in order]
        of_row = dict(zip(order, torch.split(torch.cat(pieces), sizes), strict=True))
        return torch.cat([of_row[index] for index in range(len(encoded))])

    def _halving(self, encoded: Sequence[Tensor]) -> list[Tensor]:
        """One batch in as many parts as memory asks for."""
        try:
            return [self.pooled(encoded)]
        except torch.OutOfMemoryError:
            if len(encoded) == 1:
                raise
        half = len(encoded) // 2
        return [*self._halving(encoded[:half]), *self._halving(encoded[half:])]


def load_backbone(stream: TaskStream, device: torch.device | None = None) -> Backbone:
    """
    Load a stream's frozen model.

    Raises:
        StreamError: There is no such model.
        ConfigError: A target matches no layer of it.
    """
    location = _location(stream.model, stream.folder)
    chosen = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _require_quantizable(stream, chosen)
    try:
        model, digest = load_frozen(location)
        if stream.model.quantize is not None:
            # the digest above is of the weights as they are published, so that quantised and
            # other workers are of one model
            model = _load_quantized(location, stream.model.quantize, chosen)
        else:
            model = model.float().to(chosen)
        modalities = {
            each: load_modality(each, location, stream.training.max_tokens)
            for each in stream.task_types
        }
    except (OSError, ValueError) as error:
        raise StreamError(
            f"{stream.path}: model {location!r} cannot be loaded: {error}", path=str(stream.path)
        ) from error
    model = model.eval().requires_grad_(requires_grad=False)
    found = Backbone(
        model,
        next(iter(modalities.values())),
        find_targets(model, stream.model.targets, stream.model.layers),
        chosen,
        digest,
        stream.training.precision,
        modalities,
        load_vocabulary(model, location) if "causal-lm" in modalities else None,
    )
    found = replace(found, shapes=_used_layers(found))
    _prepare_training(model, stream.training)
    return found


def _require_quantizable(stream: TaskStream, device: torch.device) -> None:
    wanted = f"{stream.path}: [model] quantize = {stream.model.quantize!r}"
    if stream.model.quantize is None:
        return
    if device.type != "cuda":
        raise StreamError(
            f"{wanted} needs an NVIDIA GPU, and this worker runs on {device.type}: take it out of the "
            "file, or start the worker where torch finds a GPU",
            path=str(stream.path),
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise StreamError(
            f"{wanted} needs the package bitsandbytes: run `pip install bitsandbytes`",
            path=str(stream.path),
        )


def _load_quantized(location: str, bits: str, device: torch.device) -> Any:
    import transformers

    config = transformers.BitsAndBytesConfig(  # type: ignore[no-untyped-call]  # transformers leaves it so
        load_in_8bit=bits == "8bit",
        load_in_4bit=bits == "4bit",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return transformers.AutoModel.from_pretrained(
        location, quantization_config=config, device_map={"": device}
    )


def _prepare_training(model: Any, training: TrainingSettings) -> None:
    """
    What saves memory or time in steps, and changes no result.

    Raises:
        StreamError: The model has no gradient checkpointing.
    """
    if training.gradient_checkpointing:
        if not getattr(model, "supports_gradient_checkpointing", False):
            raise StreamError(
                f"{type(model).__name__} has no gradient checkpointing: take "
                "gradient_checkpointing out of [training]"
            )
        # transformers has renamed it
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    if training.compile:
        model.compile(dynamic=True)


def _used_layers(backbone: Backbone) -> dict[str, LayerShape]:
    """
    Those of the adapted layers that the pooled features depend on.

    A model may carry layers that only another head reads, such as the pooler
    of BERT: they would learn nothing, and a merge refuses what has learnt nothing.
    """
    tracers = {
        name: torch.zeros((), device=backbone.device, requires_grad=True)
        for name in backbone.shapes
    }
    handles = [
        backbone.model.get_submodule(name).register_forward_hook(partial(_add, tracer))
        for name, tracer in tracers.items()
    ]
    try:
        encoded = backbone.modality.encode([backbone.modality.example])
        reached = torch.autograd.grad(
            backbone.pooled(encoded).sum(), list(tracers.values()), allow_unused=True
        )
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: shape
        for (name, shape), gradient in zip(backbone.shapes.items(), reached, strict=True)
        if gradient is not None
    }


def _add(tracer: Tensor, _module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return output + tracer


def _location(model: ModelSettings, folder: Path) -> str:
    if model.name:
        return model.name
    if model.path.startswith(KIT_PREFIX):
        return str(require_source(model.path.removeprefix(KIT_PREFIX)))
    path = folder / Path(model.path).expanduser()
    if not path.is_dir():
        raise StreamError(f"there is no model folder {path}: correct [model] path", path=str(path))
    return str(path)


def grouped_batches(
    lengths: Sequence[int], batch_size: int, order: random.Random, window: int = 8
) -> Iterator[list[int]]:
    """
    Shuffle rows into batches of like lengths, so that little is padding.

    Rows are shuffled, sorted by length within windows of ``window`` batches,
    and the batches shuffled: every row once.

    Args:
        lengths: One per row.
        batch_size: Rows per batch; the last of a window may be smaller.
        order: Decides the order.
        window: Batches that are sorted together; 1 is plain shuffling.
    """
    rows = list(range(len(lengths)))
    order.shuffle(rows)
    by_length: Callable[[int], int] = lengths.__getitem__
    span = batch_size * window
    windows = [sorted(rows[at : at + span], key=by_length) for at in range(0, len(rows), span)]
    batches = [
        each[at : at + batch_size] for each in windows for at in range(0, len(each), batch_size)
    ]
    order.shuffle(batches)
    yield from batches
