import gc
import threading

import numpy as np
import pytest
import torch

from share_dist.wire.buffers import copy_into, drop_spare, keep_a_spare, room_for

LENGTH = 2**21


@pytest.fixture
def spare():
    keep_a_spare(2 * LENGTH)
    yield
    keep_a_spare(0)


def marked(length: int = LENGTH) -> memoryview:
    """A room whose every byte is 7: fresh memory has none such."""
    room = room_for(length)
    copy_into(room, 0, b"\7" * length)
    return room


def is_used(room: memoryview) -> bool:
    return bool((np.frombuffer(room, np.uint8) == 7).all())


def test_the_last_room_is_taken_again(spare):
    """Also for a payload that is a little shorter; one that is much shorter or longer has fresh memory."""
    marked()
    shorter = room_for(LENGTH - 5)
    assert len(shorter) == LENGTH - 5
    assert is_used(shorter)
    del shorter
    assert not is_used(room_for(LENGTH // 2 - 1))
    assert not is_used(room_for(LENGTH + 1))


@pytest.mark.parametrize("look", [lambda room: room[3:], lambda room: torch.frombuffer(room, dtype=torch.uint8)[3:], lambda room: np.frombuffer(room, np.uint8)[3:].view()], ids=["slice", "tensor", "array"])  # fmt: skip
def test_a_room_that_is_looked_at_is_nobody_elses(spare, look):
    """A view of any kind holds it; the next room is another, and what is written there is not seen."""
    seen = look(marked())
    copy_into(room_for(LENGTH), 0, bytes(LENGTH))
    gc.collect()
    copy_into(room_for(LENGTH), 0, bytes(LENGTH))
    assert all(each == 7 for each in seen[:100])
    assert int(np.asarray(seen).min()) == 7


def test_a_room_is_given_back_when_told_and_where_none_is_kept(spare):
    """``drop_spare`` frees it; a process that asked for none keeps none, nor one that is longer than it asked for."""
    marked()
    drop_spare()
    assert not is_used(room_for(LENGTH))
    marked(2 * LENGTH + 1)
    assert not is_used(room_for(2 * LENGTH + 1))
    keep_a_spare(0)
    marked()
    assert not is_used(room_for(LENGTH))


def test_threads_never_share_a_room(spare):
    """Rooms that are taken and let go by many threads at once hold what their own thread wrote."""
    wrong = []

    def work(number: int) -> None:
        for _ in range(50):
            room = room_for(LENGTH)
            copy_into(room, 0, bytes([number]) * LENGTH)
            if not (np.frombuffer(room, np.uint8) == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
