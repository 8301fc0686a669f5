"""
Collections: which adapters of a model hub make one subspace, and how.

::

    [[hub]]                     # any number of these
    author = "someone"
    name = "mistral-lora-*"     # which of theirs; * stands for anything
    limit = 100                 # the first so many of these names

    [init]                      # options of `share-dist init`, which its command line may say otherwise
    num_factors = 64
    hold_out = 5

Those that come with the package are in ``collections/``.
"""

import enum
import fnmatch
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from share_dist.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Report = Callable[[str], None]
AtLeastOne = Annotated[int, Field(ge=1)]


class MetricChoice(str, enum.Enum):
    """The metrics, where asking for them must not bring torch."""

    DELTA = "delta"
    FACTORS = "factors"


class HubAdapters(BaseModel):
    """
    Adapters of one author on a hub.

    Args:
        author: A person or an organisation.
        name: Of which repositories, by their names without the author's; ``*`` stands for anything.
        limit: The first so many, in the order of their names.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    author: Annotated[str, Field(min_length=1)]
    name: Annotated[str, Field(min_length=1)] = "*"
    limit: AtLeastOne | None = None


class InitOptions(BaseModel):
    """Options of `share-dist init`, by their names and defaults there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_factors: AtLeastOne = 32
    energy: float | None = None
    metric: MetricChoice = MetricChoice.DELTA
    oversample: Annotated[int, Field(ge=0)] | None = None
    max_bytes: AtLeastOne | None = None
    augment: Annotated[int, Field(ge=0)] = 0
    hold_out: Annotated[int, Field(ge=0)] = 0
    same_base: bool = False
    skip_unfit: bool = False


class Collection(BaseModel):
    """What a collection's file says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hub: Annotated[tuple[HubAdapters, ...], Field(min_length=1)]
    init: InitOptions = InitOptions()


def collection_names() -> tuple[str, ...]:
    """Those that come with the package."""
    folder = files("share_dist.commands").joinpath("collections")
    return tuple(sorted(Path(each.name).stem for each in folder.iterdir()))


def read_collection(name_or_path: str) -> Collection:
    """
    Read a collection.

    Args:
        name_or_path: One that comes with the package, or a file.

    Raises:
        ConfigError: There is none, or it cannot be used; says which of its values and why.
    """
    path = Path(name_or_path)
    if name_or_path in collection_names():
        path = Path(
            str(files("share_dist.commands").joinpath("collections", f"{name_or_path}.toml"))
        )
    elif not path.is_file():
        raise ConfigError(
            f"there is no collection {name_or_path!r}: give a file, or one of {', '.join(collection_names())}",
            key="collection",
        )
    try:
        return Collection.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML: {error}", key="collection") from error
    except ValidationError as error:
        problems = "\n".join(
            f"  {'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()
        )
        raise ConfigError(f"{path} cannot be used:\n{problems}", key="collection") from error


def fetch_collection(
    collection: Collection, limit: int | None = None, report: Report = lambda _: None
) -> dict[str, Path]:
    """
    Fetch the adapters of a collection into the hub's cache; what is there and the newest stays.

    Nothing but the files of adapters is fetched. A fetch that was cut short goes on where it was.

    Args:
        collection: Which.
        limit: The first so many of all; None for all.
        report: Told in a sentence what happens.

    Returns:
        Repository's name without its author -> folder, in the order of the names.

    Raises:
        ConfigError: The hub cannot be reached, refuses, or holds none of them; or two would have one name.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    from share_dist.adapters.diffusers_lora import WEIGHTS_FILE
    from share_dist.adapters.lora import CONFIG_FILE, TENSOR_FILE

    disable_progress_bars()  # one for each adapter would tell nothing of all
    # the base of all errors of the library that it speaks HTTP by, which is another one in each of its releases
    http_error: Any = HfHubHTTPError.__mro__[1]
    hub = HfApi()
    try:
        report(f"asking {hub.endpoint} for adapters")
        repositories: dict[str, str] = {}
        for source in collection.hub:
            for repository in _listed(hub, source):
                _put(repositories, repository)
        chosen = sorted(repositories.items())[:limit]
        folders = {}
        for at, (name, repository) in enumerate(chosen, 1):
            report(f"fetching {repository}, {at} of {len(chosen)}")
            wanted = [CONFIG_FILE, TENSOR_FILE, WEIGHTS_FILE]
            folders[name] = Path(hub.snapshot_download(repository, allow_patterns=wanted))
    except (OSError, http_error) as error:
        raise ConfigError(
            f"{hub.endpoint} gives no adapters ({error}): see to the network, $HF_ENDPOINT, $HF_HUB_OFFLINE and "
            "$HF_TOKEN, and ask again; what has been fetched stays",
            key="collection",
        ) from error
    return folders


def _listed(hub: "HfApi", source: HubAdapters) -> list[str]:
    found = (each.id for each in hub.list_models(author=source.author))
    wanted = f"{source.author}/{source.name}"
    named = sorted(each for each in found if fnmatch.fnmatchcase(each, wanted))
    if not named:
        raise ConfigError(
            f"{hub.endpoint} has no repository {wanted}: correct author and name of [[hub]]",
            key="collection",
        )
    return named[: source.limit]


def _put(repositories: dict[str, str], repository: str) -> None:
    name = repository.rpartition("/")[2]
    other = repositories.setdefault(name, repository)
    if other != repository:
        raise ConfigError(
            f"{other} and {repository} would both become the task {name!r}: narrow the name of one [[hub]]",
            key="collection",
        )
