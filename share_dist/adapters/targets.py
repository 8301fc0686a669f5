"""Targets: which modules of a model can be adapted, and how they are chosen by name."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from share_dist.adapters.config import ALL_LINEAR, AdapterConfig
from share_dist.core.values import LayerShape
from share_dist.errors import ConfigError

HEAD_NAMES = ("classifier", "score", "qa_outputs", "lm_head", "head", "heads")
"""Names that output layers have by convention; a head belongs to its task, not to the subspace."""


def is_conv1d(module: nn.Module) -> bool:
    """
    Whether this is the ``Conv1D`` of transformers, a linear layer whose weight is ``(in, out)``.

    Told by its name, so that transformers need not be installed.
    """
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.")


def layer_shape(module: nn.Module) -> LayerShape | None:
    """Features of a layer that can be adapted, or None where it cannot."""
    if is_conv1d(module):
        return LayerShape(*module.get_parameter("weight").shape)
    # nn.MultiheadAttention reads the weight of its out_proj and never calls it
    if isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear):
        return LayerShape(module.in_features, module.out_features)
    return None


def find_targets(
    model: nn.Module,
    targets: str | Sequence[str],
    layers: Sequence[int] | None = None,
) -> dict[str, LayerShape]:
    """
    Choose the linear layers of a model that are adapted.

    Args:
        model: Any torch module.
        targets: As in ``AdapterConfig``.
        layers: As in ``AdapterConfig``.

    Returns:
        Module name, as in ``named_modules``, -> features of both sides.

    Raises:
        ConfigError: A name, the pattern or a layer index matches nothing; the
            message lists the nearest names.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> find_targets(model, ["2"])
        {'2': LayerShape(in_features=3, out_features=2)}
    """
    config = AdapterConfig(targets=targets, layers=layers)
    shapes = {
        name: shape
        for name, module in model.named_modules()
        if (shape := layer_shape(module)) is not None
    }
    chosen = _chosen_names(model, shapes, config.targets)
    if config.layers is not None:
        chosen = _with_index(chosen, config.layers)
    return {name: shapes[name] for name in sorted(chosen)}


def _chosen_names(
    model: nn.Module, shapes: Mapping[str, LayerShape], targets: str | Sequence[str]
) -> set[str]:
    if targets == ALL_LINEAR:
        chosen = shapes.keys() - _head_names(model)
        return chosen or _refuse(ALL_LINEAR, shapes)
    if isinstance(targets, str):
        chosen = {name for name in shapes if re.fullmatch(targets, name)}
        return chosen or _refuse(targets, shapes)
    return set().union(*(_ending_with(target, shapes) for target in targets))


def _ending_with(target: str, names: Iterable[str]) -> set[str]:
    chosen = {name for name in names if name == target or name.endswith(f".{target}")}
    return chosen or _refuse(target, names)


def _refuse(target: str, names: Iterable[str]) -> set[str]:
    known = sorted({*names, *(name.rpartition(".")[2] for name in names)})
    near = difflib.get_close_matches(target, known, n=5, cutoff=0.4) or known[:5]
    advice = f"the nearest names are {', '.join(near)}" if near else "it has no linear layer"
    raise ConfigError(
        f"target {target!r} matches no linear layer of the model: {advice}. "
        "A list holds module names, a string is a regular expression over the whole name",
        key="targets",
    )


def _head_names(model: nn.Module) -> set[str]:
    get_output = getattr(model, "get_output_embeddings", None)
    output = get_output() if callable(get_output) else None
    heads = [child for name, child in model.named_children() if name in HEAD_NAMES]
    inside_heads = {
        id(module) for head in (*heads, output) if head is not None for module in head.modules()
    }
    return {name for name, module in model.named_modules() if id(module) in inside_heads}


def _with_index(names: set[str], layers: Sequence[int]) -> set[str]:
    indices = {name: next(_numbers(name), None) for name in names}
    missing = set(layers) - set(indices.values())
    if missing:
        found = sorted({index for index in indices.values() if index is not None})
        raise ConfigError(
            f"layers={sorted(missing)} match none of the targets: their indices are {found}",
            key="layers",
        )
    return {name for name, index in indices.items() if index in layers}


def _numbers(name: str) -> Iterator[int]:
    return (int(part) for part in name.split(".") if part.isdigit())
