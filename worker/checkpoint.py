"""
Checkpoints: what a worker that was killed needs to go on, one folder per task.

```
tasks/movies/epoch.safetensors    the state of training: parameters, optimiser, best so far
tasks/movies/update.safetensors   learnt: what will be pushed ...
tasks/movies/factors.safetensors  ... and the same in no version's words, should the version be lost
tasks/movies/update.json          ... under this update_id; written last, makes the former count
tasks/movies/receipt.json         pushed: never trained or pushed again
```

Each file appears whole or not at all. Killed between ``update.json`` and
``receipt.json``, the worker pushes again with the same ``update_id``, which the
coordinator knows: it is one push. Every file carries the digest of what the
task is learnt from and how, so that a changed stream file is noticed. Beside
every base version stands its digest: after a restore, or from another store,
the same number may have another content. Files of release 0.1 have no digest and no
factors, and keep states between two epochs only.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from torch import Tensor

from share_dist.adapters.files import read_tensors, write_tensors
from share_dist.core.values import TaskUpdate
from share_dist.errors import StreamError
from share_dist.files import write_file
from share_dist.wire.codec import update_from_record, update_to_record
from worker.stream import Task, TaskStream
from worker.training_state import TrainingState

_GROUPS = ("tensors", "optimizer", "best_tensors", "generators")


_COUNTS = (
    "epochs_done",
    "batches_done",
    "best_epoch",
    "best_score",
    "epochs_since_best",
    "rate_share",
    "rollbacks",
    "rows_at_once",
)


def lesson_digest(stream: TaskStream, task: Task) -> str:
    """Name what a task is learnt from and how."""
    parts = [each.lesson() for each in (stream.model, stream.training, task)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class SavedState:
    """
    Where training goes on.

    Args:
        state: The last that was kept.
        base_version: The version that it is trained in.
        base_digest: Of that version; empty where a release wrote it that kept none.
    """

    state: TrainingState
    base_version: int
    base_digest: str


class TaskCheckpoint:
    """
    The checkpoint of one task.

    Args:
        workdir: The worker's own folder.
        task_id: Which task.
        digest: Of the present lesson; see :func:`lesson_digest`.

    Attributes:
        folder: Its own.
        task_id: Which task.
    """

    def __init__(self, workdir: Path, task_id: str, digest: str) -> None:
        self.folder = workdir / "tasks" / quote(task_id, safe="")
        self.task_id = task_id
        self._digest = digest

    @property
    def _epoch(self) -> Path:
        return self.folder / "epoch.safetensors"

    @property
    def _payload(self) -> Path:
        return self.folder / "update.safetensors"

    @property
    def _factors(self) -> Path:
        return self.folder / "factors.safetensors"

    @property
    def _update(self) -> Path:
        return self.folder / "update.json"

    @property
    def _receipt(self) -> Path:
        return self.folder / "receipt.json"

    def save_state(self, state: TrainingState, base_version: int, base_digest: str) -> None:
        """Keep a state of training, in place of an earlier one."""
        groups = {group: getattr(state, group) for group in _GROUPS}
        if state.is_best:
            del groups["best_tensors"]
        tensors = {
            f"{group}/{name}": tensor
            for group, members in groups.items()
            for name, tensor in members.items()
        }
        description = {
            "digest": self._digest,
            "base_version": base_version,
            "base_digest": base_digest,
            **{name: getattr(state, name) for name in _COUNTS},
        }
        write_tensors(self._epoch, tensors, {"epoch": json.dumps(description)})

    def load_state(self) -> SavedState | None:
        """
        The last state of training and the version it is trained in, if there is one.

        Raises:
            StreamError: It belongs to another lesson.
            AdapterFormatError: The file is damaged.
        """
        if not self._epoch.is_file():
            return None
        tensors, metadata = read_tensors(self._epoch)
        description = json.loads(metadata["epoch"])
        self._require_same_lesson(description)
        groups: dict[str, Any] = {group: {} for group in _GROUPS}
        for key, tensor in tensors.items():
            group, _, name = key.partition("/")
            groups[group][name] = tensor
        fields: dict[str, Any] = {
            name: description[name] for name in _COUNTS if name in description
        }
        state = TrainingState(**fields, **groups)
        if state.is_best:
            state = replace(state, best_tensors=state.tensors)
        return SavedState(state, description["base_version"], description.get("base_digest", ""))

    @property
    def has_update(self) -> bool:
        """
        Whether the task is learnt.

        Raises:
            StreamError: It belongs to another lesson.
        """
        return self._read_json(self._update) is not None

    def save_factors(self, factors: Mapping[str, Tensor]) -> None:
        """Keep what a finished update stands for; before the update itself."""
        write_tensors(self._factors, factors, {"digest": self._digest})

    def load_factors(self) -> dict[str, Tensor] | None:
        """What a finished update stands for; None where an earlier release wrote it."""
        return read_tensors(self._factors)[0] if self._factors.is_file() else None

    def save_update(self, update: TaskUpdate) -> None:
        """Keep a finished update under its id."""
        metadata, payload = update_to_record(update)
        write_file(self._payload, payload)
        self._write_json(
            self._update,
            {
                "update": metadata,
                "base_digest": update.base_digest,
                "sha256": hashlib.sha256(payload).hexdigest(),
            },
        )
        self._epoch.unlink(missing_ok=True)

    def load_update(self) -> TaskUpdate | None:
        """
        The finished update, if there is one.

        Raises:
            StreamError: It belongs to another lesson, or the file is damaged.
        """
        description = self._read_json(self._update)
        if description is None:
            return None
        payload = self._payload.read_bytes()
        if hashlib.sha256(payload).hexdigest() != description["sha256"]:
            raise StreamError(
                f"{self._payload} is not what was written: delete {self.folder} to learn "
                f"task {self.task_id!r} again",
                path=str(self._payload),
                task_id=self.task_id,
            )
        update = update_from_record(description["update"], payload)
        return replace(update, base_digest=description.get("base_digest", ""))

    def forget_pushed(self) -> None:
        """Note that the coordinator no longer has the update."""
        self._receipt.unlink(missing_ok=True)

    def save_pushed(self, update_id: str) -> None:
        """Note that the coordinator has the update."""
        self._write_json(self._receipt, {"update_id": update_id})

    def pushed_update_id(self) -> str | None:
        """
        The id under which the coordinator has the update, if it has.

        Raises:
            StreamError: It belongs to another lesson.
        """
        description = self._read_json(self._receipt)
        return None if description is None else str(description["update_id"])

    def _write_json(self, path: Path, fields: Mapping[str, Any]) -> None:
        text = json.dumps({"digest": self._digest, **fields}, indent=2)
        write_file(path, text.encode())

    def _read_json(self, path: Path) -> dict[str, Any] | None:
        if not path.is_file():
            return None
        description: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        self._require_same_lesson(description)
        return description

    def _require_same_lesson(self, description: Mapping[str, Any]) -> None:
        if description["digest"] != self._digest:
            raise StreamError(
                f"{self.folder} holds task {self.task_id!r} as another stream file described it: "
                "restore that file, or use another --workdir",
                path=str(self.folder),
                task_id=self.task_id,
            )
