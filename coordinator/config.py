"""
What a coordinator can be told: by flags, by the environment, by a TOML file.

A flag wins over ``SHARE_DIST_<KEY>`` in the environment, which wins over the
file, which wins over the default. Unknown keys of a file are refused.
"""

import difflib
import ipaddress
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from coordinator.admission import AdmissionLimits
from coordinator.policy import MergePolicy, Staleness
from share_dist.core.values import Metric
from share_dist.errors import ConfigError
from share_dist.telemetry import LogFormat
from share_dist.wire.records import DEFAULT_SUBSPACE, Role

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ENVIRONMENT_PREFIX: Final = "SHARE_DIST_"


PlaceText: TypeAlias = Annotated[
    str, BeforeValidator(lambda place: str(place) if isinstance(place, Path) else place)
]
"""A folder or a URL."""


class SubspaceConfig(BaseModel):
    """The keys that each named subspace can have for itself; at the top they hold for all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_factors: int | None = Field(
        32, ge=1, description="Principal factors per side that are broadcast, at most"
    )
    energy: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Keep the fewest factors that explain this share of the energy",
    )
    oversample: int = Field(
        32, ge=0, description="Columns kept beyond those, for the sake of later merges"
    )
    max_bytes: int | None = Field(
        None,
        ge=1,
        description="Bytes of all factors that are broadcast, at most: shared out among layers and "
        "sides by what each factor explains, up to num_factors for each side",
    )
    gives_credit: bool = Field(
        default=False,
        description="Credit what comes anew with what truncation has cut of others until then, on average: "
        "where tasks come sorted by theme, those that came first else keep later ones out",
    )
    metric: Metric = Field(
        "delta", description="What a merge keeps best: weight changes, or factors as in the paper"
    )

    min_updates: int = Field(1, ge=1, description="Merge once so many tasks have an update")
    max_wait_seconds: float = Field(
        10.0, ge=0, description="Merge anyway once an update has waited so long"
    )
    max_updates: int = Field(64, ge=1, description="Updates in one merge, at most")
    staleness: Staleness = Field(
        "transport",
        description="Late updates: merged exactly as trained (transport), counted for less "
        "(down-weight), or refused beyond max_lag and max_angle so that they are fitted again (refit)",
    )
    max_lag: int | None = Field(None, ge=0, description="With refit: versions late, at most")
    max_angle: float | None = Field(
        None, ge=0, description="With refit: radians that the subspace turned since, at most"
    )
    drift_budget: float | None = Field(
        None,
        gt=0,
        description="Cumulative drift of a task, relative to its norm, at most; a merge beyond it "
        "keeps more factors, or else parks whom it is due to",
    )
    max_subspace_bytes: int | None = Field(
        None, ge=1, description="Bytes of all bases that a drift budget may grow them to, at most"
    )
    max_influence: float | None = Field(
        None,
        gt=0,
        description="Drift of any task, relative to its norm, that one update alone may cause "
        "without an operator's consent",
    )

    max_pseudo_rank: int = Field(256, ge=1, description="Pseudo-rank of an update, at most")
    max_temporary: int = Field(256, ge=0, description="Temporary factors of an update, at most")
    max_norm: float = Field(1e4, gt=0, description="Norm of an update's dW in a layer, at most")
    quarantine_norm: float | None = Field(
        None, gt=0, description="Norm of dW in a layer beyond which an operator must consent"
    )
    quarantine_condition: float | None = Field(
        None,
        ge=1,
        description="Ratio of a layer's singular values beyond which an operator must consent",
    )
    quarantine_energy_outside: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of a layer's energy outside the bases beyond which an operator must "
        "consent",
    )
    max_update_bytes: int = Field(2**30, ge=1, description="Payload of an update, at most")
    max_pending: int = Field(1000, ge=1, description="Updates that wait, at most")
    max_set_aside_updates: int = Field(
        10_000,
        ge=1,
        description="Updates that are quarantined or parked, at most; then a push that would join "
        "them, or with max_influence or drift_budget might, is refused",
    )
    max_set_aside_bytes: int = Field(2**36, ge=1, description="Bytes of these updates, at most")
    max_set_aside_updates_per_owner: int = Field(
        1000,
        ge=1,
        description="The same number, of one principal; of one worker where nobody has a name",
    )
    max_set_aside_bytes_per_owner: int = Field(
        2**34, ge=1, description="The same bytes, of one principal, or of one worker"
    )
    max_refused_updates: int = Field(
        1000, ge=1, description="Refused pushes that are remembered, without their tensors, at most"
    )
    max_registrations_per_hour: int = Field(
        10_000,
        ge=1,
        description="Registrations of one principal within an hour, at most: each is a line of the "
        "audit log, and a row where the worker_id is new",
    )
    max_watchers: int = Field(1000, ge=1, description="Watchers at once, at most")
    max_watchers_per_peer: int = Field(
        250,
        ge=1,
        description="The same, of one principal; of one connection where nobody has a name",
    )
    anchor_every: int = Field(
        50,
        ge=1,
        description="Watchers get the whole bases again after so many versions, not rotations",
    )
    keep_versions: int = Field(
        0,
        ge=0,
        description="Versions kept, and those that someone still needs; 0 keeps every one",
    )

    lease_seconds: float = Field(
        120.0, gt=0, description="How long a worker may be silent and still push"
    )
    roles: dict[str, Role] = Field(
        default_factory=dict,
        description="Principal -> reader, worker or admin; empty leaves it to their credentials",
    )

    @property
    def policy(self) -> MergePolicy:
        """When a merge is due."""
        return MergePolicy(
            min_updates=self.min_updates,
            max_wait_seconds=self.max_wait_seconds,
            max_updates=self.max_updates,
            staleness=self.staleness,
            max_lag=self.max_lag,
            max_angle=self.max_angle,
        )

    @property
    def limits(self) -> AdmissionLimits:
        """What an update may be at most."""
        return AdmissionLimits(
            max_pseudo_rank=self.max_pseudo_rank,
            max_temporary=self.max_temporary,
            max_norm=self.max_norm,
            quarantine_norm=self.quarantine_norm,
            quarantine_condition=self.quarantine_condition,
            quarantine_energy_outside=self.quarantine_energy_outside,
        )


class CoordinatorConfig(SubspaceConfig):
    """Every key of a coordinator's configuration."""

    store: PlaceText = Field(
        description="Folder of the store, made if it is not there; or a database URL"
    )
    blobs: PlaceText | None = Field(
        None, description="Folder or fsspec URL of large tensors; a folder of the store by default"
    )
    owner_lease_seconds: float = Field(
        30.0, gt=0, description="How long a coordinator that hangs keeps others from its store"
    )
    inline_bytes: int = Field(
        2**18, ge=0, description="Payloads up to this size lie in the database itself"
    )
    listen: str = Field(
        "127.0.0.1:50551", description="Address to serve on; port 0 takes a free one"
    )
    port_file: Path | None = Field(None, description="File to write the port to once serving")
    insecure: bool = Field(
        default=False, description="Serve beyond this machine without encryption or authentication"
    )
    tls_certificate: Path | None = Field(
        None, description="Certificate of this coordinator; with it, it speaks TLS only"
    )
    tls_key: Path | None = Field(None, description="Private key of tls_certificate")
    tls_client_ca: Path | None = Field(
        None, description="Authorities of which every client must show a certificate"
    )
    require_token: bool = Field(
        default=False,
        description="Every call must show a token; so it is with TLS that asks for no certificates",
    )
    max_bytes_in_flight: int = Field(
        2**31, ge=1, description="Payload bytes on their way in and out at once, at most"
    )
    max_bytes_in_flight_per_peer: int = Field(
        2**30,
        ge=1,
        description="The same, of one principal; of one connection where nobody has a name",
    )
    uploads: Path | None = Field(
        None,
        description="Folder for pushes that were cut off; a folder of the store by default, with a "
        "database a temporary one",
    )
    max_bytes_of_uploads: int = Field(
        2**32, ge=0, description="Bytes of such pushes that are kept, at most; the oldest go"
    )
    stall_seconds: float = Field(
        60.0, gt=0, description="How long a peer may neither send nor take the next chunk"
    )
    min_bytes_per_second: int = Field(
        2**15, ge=1, description="Slower than this, on average, no peer may send or take a payload"
    )
    metrics_listen: str | None = Field(None, description="Address to serve Prometheus metrics on")
    web_listen: str | None = Field(
        None, description="Address to serve the operator's read-only page on; not served by default"
    )
    subspaces: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Named subspaces beside 'default', each with the keys that it has for itself",
    )
    grace_seconds: float = Field(
        5.0, ge=0, description="How long calls in flight may go on after the signal to stop"
    )
    threads: int = Field(1, ge=1, description="Threads of a merge's linear algebra")
    log_format: LogFormat = Field("console", description="How logs are written")
    log_level: str = Field(
        "INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="What is logged"
    )

    @property
    def needs_token(self) -> bool:
        """Whether every call must show a token."""
        is_open = self.tls_certificate is not None and self.tls_client_ca is None
        return self.require_token or (is_open and not self.insecure)

    @property
    def is_authenticated(self) -> bool:
        """Whether everybody has to say who they are."""
        return self.needs_token or self.tls_client_ca is not None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the subspaces that are served from the start."""
        return tuple(sorted({DEFAULT_SUBSPACE, *self.subspaces}))

    def subspace(self, name: str) -> SubspaceConfig:
        """
        Return the configuration of a named subspace: its own keys over those at the top.

        Raises:
            ConfigError: A key is unknown or a value cannot be used.
        """
        shared = {key: getattr(self, key) for key in SubspaceConfig.model_fields}
        try:
            config = SubspaceConfig.model_validate(shared | self.subspaces.get(name, {}))
        except ValidationError as error:
            raise _config_error(error, f"[subspaces.{name}]", SubspaceConfig) from None
        _check_bytes(config)
        return config


def load_config(
    flags: Mapping[str, Any],
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> CoordinatorConfig:
    """
    Put a configuration together.

    Args:
        flags: Key -> value; keys whose value is None were not given.
        file: A TOML file with the same keys.
        environment: ``os.environ`` when absent.

    Raises:
        ConfigError: A key is unknown or a value cannot be used.
    """
    environment = os.environ if environment is None else environment
    from_environment = {
        key: environment[ENVIRONMENT_PREFIX + key.upper()]
        for key in CoordinatorConfig.model_fields
        if ENVIRONMENT_PREFIX + key.upper() in environment
    }
    given = {key: value for key, value in flags.items() if value is not None}
    values = _read_file(file) | from_environment | given
    try:
        config = CoordinatorConfig.model_validate(values)
    except ValidationError as error:
        raise _config_error(error, str(file or "the flags"), CoordinatorConfig) from None
    _check_tls(config)
    is_private = config.insecure or config.tls_certificate is not None
    _check_address("listen", config.listen, is_allowed=is_private)
    for key in ("metrics_listen", "web_listen"):
        _check_address(key, getattr(config, key), is_allowed=config.insecure)
    for name in config.names:
        config.subspace(name)
    return config


def split_address(address: str, key: str = "listen") -> tuple[str, int]:
    """
    Split ``host:port``; an IPv6 host stands in brackets.

    Raises:
        ConfigError: It has not that form.

    Examples:
        >>> split_address("[::1]:50551")
        ('::1', 50551)
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"{key} is {address!r}: give host:port, such as 127.0.0.1:50551", key=key)
    return host.strip("[]"), int(port)


def _read_file(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}", key="config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is no TOML file: {error}", key="config") from error


def _config_error(error: ValidationError, where: str, model: type[BaseModel]) -> ConfigError:
    first = error.errors(include_url=False)[0]
    key = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        sentence = f"unknown key {key!r} in {where}: {_instead_of(key, model)}"
    elif first["type"] == "missing":
        sentence = f"{key} is missing: give --{key.replace('_', '-')}, or {key} in a file"
    else:
        sentence = f"{key} is {first['input']!r}: {first['msg'].lower()}"
    return ConfigError(sentence, key=key)


def _instead_of(key: str, model: type[BaseModel]) -> str:
    if key in CoordinatorConfig.model_fields:
        return "it is one of the whole coordinator, so set it above all tables"
    # none rather than a far one: 'insecure' must not be offered to somebody who meant something else
    nearest = difflib.get_close_matches(key, model.model_fields, n=1)
    return f"did you mean {nearest[0]!r}?" if nearest else "the README has a table of all keys"


def _check_bytes(config: SubspaceConfig) -> None:
    if config.max_bytes is not None and config.max_subspace_bytes is not None:
        raise ConfigError(
            f"max_bytes is {config.max_bytes} and max_subspace_bytes is {config.max_subspace_bytes}: the "
            "first bounds what a drift budget may grow already, so give only one of them",
            key="max_subspace_bytes",
        )


def _check_tls(config: CoordinatorConfig) -> None:
    for key, needed in (
        ("tls_certificate", "tls_key"),
        ("tls_key", "tls_certificate"),
        ("tls_client_ca", "tls_certificate"),
    ):
        if getattr(config, key) is not None and getattr(config, needed) is None:
            raise ConfigError(
                f"{key} was given without {needed}: `share-dist certs` makes all that TLS needs",
                key=needed,
            )


def _check_address(key: str, address: str | None, *, is_allowed: bool) -> None:
    if address is None:
        return
    host, _ = split_address(address, key)
    if is_allowed or is_loopback(host):
        return
    remedy = (
        "Give --tls-certificate and --tls-key, which `share-dist certs` makes; or listen"
        if key == "listen"
        else "Listen"
    )
    raise ConfigError(
        f"{key} is {address!r}: anyone who reaches it could read what it says, for nothing is "
        f"encrypted there. {remedy} on 127.0.0.1 and reach it through a tunnel; or pass --insecure "
        "if the network itself is trusted",
        key=key,
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on a host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
