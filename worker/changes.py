"""Changes of a TOML document from the command line: ``section.key=value``."""

import copy
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from share_dist.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def changed(
    document: Mapping[str, Any], changes: Sequence[str], sections: Sequence[str]
) -> dict[str, Any]:
    """
    Return a document with values changed.

    Args:
        document: What a file holds; it stays as it is.
        changes: ``section.key=value`` each, of which the last counts; the value as in TOML, but that text needs no quotes.
        sections: Those that may be changed.

    Raises:
        ConfigError: A change has another form, or is of another section.

    Examples:
        >>> changed({"training": {"epochs": 3}}, ["training.epochs=5", "training.start=random"], ["training"])
        {'training': {'epochs': 5, 'start': 'random'}}
        >>> changed({}, ["bench.rates.lora=[0.01]"], ["bench"])
        {'bench': {'rates': {'lora': [0.01]}}}
    """
    result = copy.deepcopy(dict(document))
    for change in changes:
        where, sign, value = change.partition("=")
        *path, key = where.strip().split(".")
        if not sign or not path or not all([*path, key]):
            raise ConfigError(
                f"--set {change!r} is no section.key=value: write for example --set {sections[0]}.seed=1",
                key="set",
            )
        if path[0] not in sections:
            raise ConfigError(
                f"--set {change!r}: what can be set is in {' and '.join(f'[{each}]' for each in sections)}; "
                "change the file for everything else",
                key="set",
            )
        _place(result, path)[key] = _value(value.strip())
    return result


def _place(document: dict[str, Any], path: Sequence[str]) -> dict[str, Any]:
    """The section of this path, which is made where there is none."""
    for name in path:
        inner = document.get(name)
        if not isinstance(inner, dict):
            inner = document[name] = {}
        document = inner
    return document


def _value(said: str) -> Any:
    """A value as in TOML; what is none is text."""
    try:
        return tomllib.loads(f"value = {said}")["value"]
    except tomllib.TOMLDecodeError:
        return said
