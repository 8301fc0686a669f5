"""The frozen model as a folder of `transformers` holds it, and the digest that names it."""

from pathlib import Path
from typing import Any

from share_dist.adapters.digest import model_digest


def load_frozen(location: str | Path, **options: Any) -> tuple[Any, str]:
    """
    Load a model without a head, and name it by its weights.

    Parameters that the checkpoint lacks, such as the pooler of an encoder that
    was trained without one, are drawn at random in every process and are not
    part of the name.

    Args:
        location: A folder, or a model of the hub.
        options: Handed to ``AutoModel.from_pretrained``.

    Returns:
        The model and its digest.

    Raises:
        OSError, ValueError: As ``transformers`` raises them.
    """
    import transformers

    model, loading = transformers.AutoModel.from_pretrained(
        location, output_loading_info=True, **options
    )
    return model, model_digest(model, exclude=sorted(loading["missing_keys"]))
