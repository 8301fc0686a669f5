"""
The outbox: what is learnt goes to the coordinator in the background, while the next task trains.

```
movies   learnt, on disk, put       push ...... answered: receipt.json
tweets   train                      learnt, put     push: nobody answers
nyt      train                                      waits, with all that come after, on disk
                                                    the coordinator is back: push, push
movies   restored from a backup of before it was pushed: not there any more: put again
```

It holds no update: the checkpoints on disk are what waits. A push that is repeated is
one push, by its ``update_id``; an update whose base version the coordinator does not
have is said in the newest one, losing nothing, and pushed under a new id.
"""

import itertools
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable
from functools import partial

from share_dist.core.values import Subspace, TaskUpdate
from share_dist.errors import LeaseExpired, ShareError, StreamError, VersionError
from share_dist.wire.records import Receipt, TaskSummary, UpdateState
from worker.checkpoint import TaskCheckpoint
from worker.contact import AWAY, PASSING, Contact, with_growing_time
from worker.disk import Disk
from worker.heartbeat import Heartbeat
from worker.journal import Journal
from worker.ports import Coordinator
from worker.progress import WorkerEvent
from worker.restating import restated

_LOOK_SECONDS = 0.2

_ON_THEIR_WAY = {UpdateState.PENDING, UpdateState.MERGED}
"""States of updates that must not get lost; whoever set others aside has decided upon them."""


class Outbox:
    """
    Pushes finished tasks in the order in which they were put, in a thread of its own.

    Args:
        contact: Through which is asked; told how many wait.
        coordinator: Whom it pushes to.
        heartbeat: Holds the lease.
        journal: Where is noted what became of them.
        disk: Writes receipts.
        pull: Gets the newest version.
    """

    def __init__(
        self,
        contact: Contact,
        coordinator: Coordinator,
        heartbeat: Heartbeat,
        journal: Journal,
        disk: Disk,
        pull: Callable[[], Subspace],
    ) -> None:
        self._contact = contact
        self._coordinator = coordinator
        self._heartbeat = heartbeat
        self._journal = journal
        self._disk = disk
        self._pull = pull
        self._waiting: deque[TaskCheckpoint] = deque()
        self._pushed: dict[str, TaskCheckpoint] = {}
        self._is_over = False
        self._changed = threading.Condition()

    @property
    def is_empty(self) -> bool:
        """Whether all that was put is pushed."""
        return not self._waiting

    def close(self) -> None:
        """Let ``run`` end."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def put(self, checkpoint: TaskCheckpoint) -> None:
        """Push the update of a checkpoint, unless that was done; it takes the place of an earlier one of its task."""
        update_id = checkpoint.pushed_update_id()
        with self._changed:
            self._forget_former(checkpoint.task_id)
            if update_id is None:
                self._waiting.append(checkpoint)
            else:
                self._pushed[update_id] = checkpoint
        self._note_change()

    def pushed_ids(self) -> set[str]:
        """Updates that the coordinator has answered for."""
        with self._changed:
            return set(self._pushed)

    def note_decided(self, summaries: Iterable[TaskSummary]) -> None:
        """Let go of updates that somebody has set aside, rolled back or removed: they are not lost."""
        for summary in summaries:
            each = summary.newer or summary
            with self._changed:
                is_news = each.update_id in self._pushed and each.state not in _ON_THEIR_WAY
                if is_news:
                    del self._pushed[each.update_id]
            if is_news:
                self._journal.amend(summary.task_id, state=each.state.value)
                self._tell_set_aside(summary.task_id, each.update_id, each.state, each.reason)

    def push_again(self, update_ids: Collection[str]) -> None:
        """Put updates again that the coordinator no longer knows, as after its store was restored."""
        for update_id in update_ids:
            with self._changed:
                checkpoint = self._pushed.pop(update_id, None)
            if checkpoint is None:  # another took its place meanwhile
                continue
            checkpoint.forget_pushed()
            self._journal.emit(
                WorkerEvent.UPDATE_LOST, task_id=checkpoint.task_id, update_id=update_id
            )
            self.put(checkpoint)

    def wait_empty(self, check: Callable[[], None]) -> None:
        """
        Wait until all that was put is pushed.

        Args:
            check: Called now and then while it waits; raises to wait no longer.
        """
        with self._changed:
            while not self._changed.wait_for(lambda: self.is_empty, _LOOK_SECONDS):
                check()

    def run(self) -> None:
        """Push until closed."""
        while (checkpoint := self._next()) is not None:
            try:
                self._push(checkpoint)
            except ShareError as error:  # noqa: PERF203  # once a push
                if self._contact.is_closed:
                    return
                raise _naming(checkpoint.task_id, error) from error

    def _next(self) -> TaskCheckpoint | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_over)
            return None if self._is_over else self._waiting[0]

    def _push(self, checkpoint: TaskCheckpoint) -> None:
        update, receipt, told = _loaded(checkpoint), None, ""
        self._tell_unchecked(update)
        attempts = itertools.count()
        while receipt is None:
            try:
                receipt = self._contact.ask(partial(self._post, update))
            except VersionError as error:  # noqa: PERF203  # once a push
                update = self._restated(update, checkpoint, error)
                self._contact.pause(next(attempts))
            except PASSING as error:
                told = self._tell_postponed(update, error, told)
                self._contact.pause(next(attempts), error)
                if self._contact.is_closed:
                    raise
        self._note_pushed(checkpoint, update, receipt)

    def _post(self, update: TaskUpdate) -> Receipt:
        push = partial(with_growing_time, self._coordinator, lambda: self._coordinator.push(update))
        self._heartbeat.register()
        try:
            return push()
        except LeaseExpired as error:
            self._heartbeat.renew(error)
            return push()

    def _restated(
        self, update: TaskUpdate, checkpoint: TaskCheckpoint, error: VersionError
    ) -> TaskUpdate:
        """Say an update in the newest version, as its own is not there."""
        self._journal.emit(
            WorkerEvent.BASE_REFUSED,
            task_id=update.task_id,
            base_version=update.base_version,
            reason=error.message,
        )
        factors = checkpoint.load_factors()
        if factors is None:
            raise StreamError(
                f"{error.message}. An earlier release learnt it, and kept nothing that can be said in "
                f"another version: delete {checkpoint.folder} to learn it again, and go on with --resume",
                path=str(checkpoint.folder),
                task_id=update.task_id,
            ) from error
        again = restated(update, factors, self._contact.insist(self._pull))
        self._disk.insist(lambda: checkpoint.save_update(again))
        return again

    def _note_pushed(
        self, checkpoint: TaskCheckpoint, update: TaskUpdate, receipt: Receipt
    ) -> None:
        self._disk.insist(lambda: checkpoint.save_pushed(update.update_id))
        said = {
            "update_id": update.update_id,
            "base_version": update.base_version,
            "state": receipt.state.value,
        }
        self._journal.amend(update.task_id, **said)
        self._journal.emit(WorkerEvent.UPDATE_PUSHED, task_id=update.task_id, **said)
        if receipt.state not in _ON_THEIR_WAY:
            self._tell_set_aside(update.task_id, update.update_id, receipt.state, receipt.reason)
        with self._changed:
            self._waiting.popleft()
            self._forget_former(update.task_id)
            if receipt.state in _ON_THEIR_WAY:
                self._pushed[update.update_id] = checkpoint
        self._note_change()

    def _forget_former(self, task_id: str) -> None:
        """Let go of what was pushed of a task before: the last of it counts."""
        former = [key for key, each in self._pushed.items() if each.task_id == task_id]
        for update_id in former:
            del self._pushed[update_id]

    def _note_change(self) -> None:
        with self._changed:
            self._changed.notify_all()
            self._contact.note_waiting(len(self._waiting))

    def _tell_set_aside(
        self, task_id: str, update_id: str, state: UpdateState, reason: str
    ) -> None:
        self._journal.emit(
            WorkerEvent.UPDATE_SET_ASIDE,
            task_id=task_id,
            update_id=update_id,
            state=state.value,
            reason=reason,
        )

    def _tell_unchecked(self, update: TaskUpdate) -> None:
        if not update.base_digest:
            self._journal.emit(
                WorkerEvent.BASE_UNCHECKED,
                task_id=update.task_id,
                base_version=update.base_version,
            )

    def _tell_postponed(self, update: TaskUpdate, error: ShareError, told: str) -> str:
        """Tell once of each reason for which a coordinator that answers takes nothing."""
        kind = type(error).__name__
        if not isinstance(error, AWAY) and kind != told:
            self._journal.emit(
                WorkerEvent.PUSH_POSTPONED, task_id=update.task_id, reason=error.message
            )
        return kind


def _loaded(checkpoint: TaskCheckpoint) -> TaskUpdate:
    update = checkpoint.load_update()
    assert update is not None
    return update


def _naming(task_id: str, error: ShareError) -> ShareError:
    """The same error, with the task in its message."""
    if repr(task_id) in error.message:
        return error
    return type(error)(f"task {task_id!r}: {error.message}", **error.details)
