"""The cluster: start local Ray or connect to one that runs, and place one actor per stream."""

import logging
import math
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from share_dist.errors import ConfigError
from worker.actor import WorkerActor, WorkerConfig

LOCAL_OBJECT_STORE_BYTES = 100_000_000
"""Results and events are all that passes through it."""

_CALLS_AT_ONCE = 4
_FOR_EVER = -1


@dataclass(frozen=True, slots=True)
class Place:
    """
    What one actor is given.

    Args:
        num_cpus: Its share of the processors, as Ray counts it.
        num_gpus: Its share of the accelerators.
        num_threads: Threads of torch.
    """

    num_cpus: float
    num_gpus: float
    num_threads: int


def plan_places(
    machines: Sequence[Mapping[str, float]], num_actors: int, num_at_once: int
) -> Place:
    """
    Share a cluster out evenly, so that every actor fits onto one machine.

    One accelerator per actor where there are enough; where there are fewer, as
    many actors share each as must. Of processors each has the most with which
    all find a place. Threads are those of the processors that the actors that
    work at once have to themselves.

    Args:
        machines: What each has, as Ray says it.
        num_actors: Actors that are placed.
        num_at_once: How many of them train at the same time.

    Examples:
        >>> plan_places([{"CPU": 2.0}], num_actors=2, num_at_once=2)
        Place(num_cpus=1.0, num_gpus=0.0, num_threads=1)
        >>> plan_places([{"CPU": 16.0, "GPU": 1.0}], num_actors=2, num_at_once=2)
        Place(num_cpus=8.0, num_gpus=0.5, num_threads=8)
        >>> plan_places([{"CPU": 4.0, "GPU": 1.0}] * 2, num_actors=3, num_at_once=3)
        Place(num_cpus=2.0, num_gpus=0.5, num_threads=2)
    """
    sizes = [(each.get("CPU", 0.0), each.get("GPU", 0.0)) for each in machines]
    sizes = [size for size in sizes if size[0]] or [(1.0, 0.0)]
    num_gpus = sum(int(gpus) for _, gpus in sizes)
    per_gpu = math.ceil(num_actors / num_gpus) if num_gpus else 0
    rooms = [
        (cpus, int(gpus) * per_gpu if num_gpus else num_actors)
        for cpus, gpus in sizes
        if gpus or not num_gpus
    ]
    share = _largest_share(rooms, num_actors)
    threads = int(share * num_actors / num_at_once + 1e-9)
    return Place(
        num_cpus=share,
        num_gpus=1 / per_gpu if per_gpu else 0.0,
        num_threads=max(1, min(threads, int(max(cpus for cpus, _ in rooms)))),
    )


def _largest_share(rooms: Sequence[tuple[float, int]], num_actors: int) -> float:
    """Return the most processors each with which all fit; a room has some, and bounds the actors."""
    shares = {cpus / count for cpus, _ in rooms for count in range(1, num_actors + 1)}
    # Ray takes fractions below one and whole numbers above
    allowed = {float(int(share)) if share >= 1 else share for share in shares}
    for share in sorted(allowed, reverse=True):
        fitting = (min(math.floor(cpus / share + 1e-9), most) for cpus, most in rooms)
        if sum(fitting) >= num_actors:
            return share
    return min(allowed)


@contextmanager
def ray_cluster(
    address: str | None = None, num_cpus: int | None = None
) -> Iterator[list[Mapping[str, float]]]:
    """
    Connect to a Ray cluster for a while.

    ``RAY_AUTH_MODE`` is always set: Ray's own default differs between a local
    cluster, a head and a worker. A local cluster is closed to other users by a
    token of its own, which lives in the environment and is written nowhere.

    Args:
        address: Of a cluster that runs; None starts a local one, which ends with the context.
        num_cpus: Processors of a local one; None for all.

    Returns:
        What each of its machines has.

    Raises:
        ConfigError: There is no cluster at the address, or none can be started here.
    """
    # before the first import of Ray, which reads it there and then
    _set_environment(address)
    import ray

    try:
        if address is None:
            _start_here(num_cpus)
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"no Ray cluster answers at {address or 'this machine'}: {error}", key="ray_address"
        ) from error
    try:
        listed = ray.nodes()  # type: ignore[no-untyped-call]  # Ray leaves it so
        yield [each["Resources"] for each in listed if each["Alive"]]
    finally:
        ray.shutdown()


def _start_here(num_cpus: int | None) -> None:
    """
    Start a local Ray; once more where one of its processes did not come up.

    Raises:
        RuntimeError: Nor did it then.
    """
    if _failure_to_start(num_cpus) is None:
        return
    failure = _failure_to_start(num_cpus)
    if failure is not None:
        raise RuntimeError(f"{failure} This was tried twice.") from failure


def _failure_to_start(num_cpus: int | None) -> Exception | None:
    import ray

    try:
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            object_store_memory=LOCAL_OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except Exception as error:
        # Ray says by no class of its own that a node "timed out during startup", which passes
        if type(error) is not Exception:
            raise
        ray.shutdown()
        return error
    return None


def _set_environment(address: str | None) -> None:
    if address is None:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    else:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def place_actor(config: WorkerConfig, place: Place) -> Any:
    """
    Put one worker into the cluster.

    Ray starts it again whenever its process or its machine is lost, and calls
    ``run`` again: it goes on from its checkpoints, for as long as there are more of them each time.
    """
    import ray

    remote = ray.remote(_RayActor).options(
        num_cpus=place.num_cpus,
        num_gpus=place.num_gpus,
        max_concurrency=_CALLS_AT_ONCE,
        max_restarts=_FOR_EVER,
        max_task_retries=_FOR_EVER,
        scheduling_strategy="SPREAD",
    )
    return remote.remote(config)


class _RayActor(WorkerActor):
    def __init__(self, config: WorkerConfig) -> None:
        import ray

        context = ray.get_runtime_context()
        super().__init__(config, is_restarted=context.was_current_actor_reconstructed)
        self.own_process()
