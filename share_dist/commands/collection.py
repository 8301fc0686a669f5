"""
Collections: which adapters of a model hub make one subspace, and how.

::

    [[hub]]                     # any number of these
    author = "someone"
    name = "mistral-lora-*"     # which of theirs; * stands for anything
    limit = 100                 # the first so many of these names
    revision = "v1"             # a branch, tag or commit of each; default: the newest

    [init]                      # options of `share-dist init`, which its command line may say otherwise
    num_factors = 64
    hold_out = 5

Those that come with the package are in ``collections/``.
"""

import enum
import errno
import fnmatch
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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
        revision: Branch, tag or commit of each; None for the newest.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    author: Annotated[str, Field(min_length=1)]
    name: Annotated[str, Field(min_length=1)] = "*"
    limit: AtLeastOne | None = None
    revision: str | None = None


class InitOptions(BaseModel):
    """Options of `share-dist init`, by their names and defaults there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_factors: AtLeastOne = 32
    energy: Annotated[float, Field(gt=0, le=1)] | None = None
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


def list_collection(
    collection: Collection, limit: int | None = None, report: Report = lambda _: None
) -> dict[str, "HubAdapter"]:
    """
    Ask the hub which adapters a collection means.

    Args:
        collection: Which.
        limit: No more than so many, the first by their names.
        report: Told in a sentence what happens.

    Returns:
        Repository's name without its author -> what it is, in the order of the names.

    Raises:
        ConfigError: The hub cannot be reached, refuses, or holds none of a source; or two would have one name.
    """
    from huggingface_hub import HfApi

    hub = HfApi()
    report(f"asking {hub.endpoint} for adapters")
    found: dict[str, HubAdapter] = {}
    with _asking(hub):
        for source in collection.hub:
            for repository in _listed(hub, source):
                _put(found, HubAdapter(repository, source.revision))
    return dict(sorted(found.items())[:limit])


def fetch_adapters(
    adapters: Mapping[str, "HubAdapter"], *, skips: bool, report: Report = lambda _: None
) -> tuple[dict[str, Path], dict[str, str]]:
    """
    Fetch adapters into the hub's cache; what is there and the newest stays.

    Nothing but the files of adapters is fetched. A fetch that was cut short goes on where it was.

    Args:
        adapters: Name -> what is fetched.
        skips: Goes on where the hub refuses one of them.
        report: Told in a sentence what happens.

    Returns:
        Name -> folder, and name -> why the hub refuses it.

    Raises:
        ConfigError: The hub cannot be reached, or refuses; or there is no room.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    from share_dist.adapters.diffusers_lora import WEIGHTS_FILE
    from share_dist.adapters.lora import CONFIG_FILE, TENSOR_FILE

    disable_progress_bars()  # one for each adapter would tell nothing of all
    hub = HfApi()
    wanted = [CONFIG_FILE, TENSOR_FILE, WEIGHTS_FILE]
    folders, refused = {}, {}
    for at, (name, adapter) in enumerate(adapters.items(), 1):
        report(f"fetching {adapter.repository}, {at} of {len(adapters)}")
        with _asking(hub):
            try:
                folder = hub.snapshot_download(adapter.repository, revision=adapter.revision, allow_patterns=wanted)  # fmt: skip
            except (RepositoryNotFoundError, RevisionNotFoundError) as error:  # gated ones are such
                if not skips:
                    raise
                refused[name] = f"{hub.endpoint} refuses it with {error.response.status_code}"
            else:
                folders[name] = Path(folder)
    return folders, refused


@dataclass(frozen=True)
class HubAdapter:
    """
    One adapter of a hub.

    Args:
        repository: With its author.
        revision: Of it; None for the newest.
    """

    repository: str
    revision: str | None


@contextmanager
def _asking(hub: "HfApi") -> Iterator[None]:
    """Say in our words what goes wrong between here and a hub."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    # the base of all errors of the library that it speaks HTTP by, which is another one in each of its releases
    http_error: Any = HfHubHTTPError.__mro__[1]
    try:
        yield
    except (OSError, http_error) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise ConfigError(
                f"{constants.HF_HUB_CACHE} has no room for more adapters: free some, or set $HF_HUB_CACHE to a "
                "folder that has, and ask again; what has been fetched stays",
                key="collection",
            ) from error
        raise ConfigError(
            f"{hub.endpoint} gives no adapters ({error}): see to the network, $HF_ENDPOINT, $HF_HUB_OFFLINE and "
            "$HF_TOKEN, and ask again; what has been fetched stays",
            key="collection",
        ) from error


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


def _put(found: dict[str, HubAdapter], adapter: HubAdapter) -> None:
    name = adapter.repository.rpartition("/")[2]
    other = found.setdefault(name, adapter)
    if other.repository != adapter.repository:
        raise ConfigError(
            f"{other.repository} and {adapter.repository} would both become the task {name!r}: narrow the name of one [[hub]]",
            key="collection",
        )
