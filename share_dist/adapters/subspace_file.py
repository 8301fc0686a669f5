"""A subspace on disk: every basis in one safetensors file, described in its header."""

import json
from pathlib import Path

from share_dist.adapters.files import read_tensors, require_keys, write_tensors
from share_dist.core.values import (
    METRICS,
    SIDES,
    Basis,
    LayerSubspace,
    Subspace,
    check_orthonormal,
)
from share_dist.errors import AdapterFormatError

FORMAT = "share-dist subspace 1"


def save_subspace(path: str | Path, subspace: Subspace) -> None:
    """
    Write a subspace; one rename puts it in place.

    Args:
        path: The file to write.
        subspace: Any version; a tail is written as well, and how much energy was cut.
    """
    tensors = {}
    for name, layer in subspace.layers.items():
        for side, basis in layer:
            # cloned: bases may share memory, which safetensors refuses
            tensors[f"layers/{name}/{side}/vectors"] = basis.vectors.clone()
            tensors[f"layers/{name}/{side}/energies"] = basis.energies.clone()
    description = {
        "format": FORMAT,
        "version": subspace.version,
        "metric": subspace.metric,
        "digest": subspace.digest,
        "num_factors": {
            name: [layer.a.num_factors, layer.b.num_factors]
            for name, layer in subspace.layers.items()
        },
        "cut_energy": {
            name: [layer.a.cut_energy, layer.b.cut_energy]
            for name, layer in subspace.layers.items()
        },
    }
    write_tensors(Path(path), tensors, {"share_dist": json.dumps(description)})


def load_subspace(path: str | Path) -> Subspace:
    """
    Read a subspace.

    Raises:
        AdapterFormatError: The file is no subspace, or tensors are missing or unexpected.
        NotOrthonormal: Its columns are not what they claim to be.
    """
    path = Path(path)
    tensors, metadata = read_tensors(path)
    try:
        description = json.loads(metadata.get("share_dist", ""))
        is_subspace = description["format"] == FORMAT and description["metric"] in METRICS
        num_factors = {
            name: (int(a), int(b)) for name, (a, b) in description["num_factors"].items()
        }
        # files of the first release say nothing of it
        cut_energy = {
            name: (float(a), float(b)) for name, (a, b) in description.get("cut_energy", {}).items()
        }
        version, digest = int(description["version"]), str(description.get("digest", ""))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AdapterFormatError(f"{path} holds no subspace: {error}", path=str(path)) from error
    if not is_subspace:
        raise AdapterFormatError(
            f"{path} is {description['format']!r} of metric {description['metric']!r}; "
            f"this release reads {FORMAT!r}",
            path=str(path),
        )
    expected = {
        f"layers/{name}/{side}/{part}"
        for name in num_factors
        for side in SIDES
        for part in ("vectors", "energies")
    }
    require_keys(path, expected, tensors)
    layers = {
        name: LayerSubspace(*(
            Basis(
                tensors[f"layers/{name}/{side}/vectors"],
                tensors[f"layers/{name}/{side}/energies"],
                k,
                cut,
            )
            for side, k, cut in zip(SIDES, counts, cut_energy.get(name, (0.0, 0.0)), strict=True)
        ))
        for name, counts in num_factors.items()
    }  # fmt: skip
    subspace = Subspace(layers, version, description["metric"], digest)
    check_orthonormal(subspace)
    return subspace
