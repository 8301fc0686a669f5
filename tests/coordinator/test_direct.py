"""A file that is written past the page cache has the same bytes as any, however they come."""

import errno
import fcntl
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.direct import DirectFile
from share_dist.wire.buffers import room_for

PAGE = 4096
ROOM = 2**20 + 5 * PAGE + 7
"""Above a MiB, so that it begins where a page does."""


@pytest.fixture(scope="module")
def room():
    found = room_for(ROOM)
    found[:] = os.urandom(ROOM)
    return found


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file"


def is_direct(file):
    return bool(fcntl.fcntl(file.fileno(), fcntl.F_GETFL) & os.O_DIRECT)


def write_all(path, room, ends, start=0):
    file = DirectFile(path, start)
    for begin, end in zip([start, *ends], ends, strict=False):
        file.write(room[begin:end])
    file.close()


def can_go_past(path):
    file = DirectFile(path, 0)
    file.close()
    path.unlink()
    return file.is_direct


def test_whole_pages_go_past_the_cache(path, room):
    """What is aligned is written directly; the rest of the last page is not, and is there all the same."""
    if not can_go_past(path):
        pytest.skip("this file system has no O_DIRECT")
    file = DirectFile(path, 0)
    file.write(room[: 64 * PAGE])
    assert file.is_direct
    assert is_direct(file)
    assert path.read_bytes() == room[: 64 * PAGE]
    file.write(room[64 * PAGE :])
    assert not file.is_direct
    assert not is_direct(file)
    file.close()
    assert path.read_bytes() == room


@given(ends=st.sets(st.integers(1, ROOM), min_size=1, max_size=8), pages=st.integers(0, 8))
@settings(max_examples=50, deadline=None)
def test_any_pieces_make_the_same_file(tmp_path_factory, room, ends, pages):
    """Aligned or not, from the beginning or after what is there, which is cut where it is too long."""
    path = tmp_path_factory.mktemp("pieces") / "file"
    start = pages * PAGE
    path.write_bytes(bytes(room[:start]) + b"half a chunk")
    ends = sorted(end for end in ends if end > start)
    write_all(path, room, ends, start)
    assert path.read_bytes() == room[: ends[-1] if ends else start]


def test_memory_that_is_not_aligned_is_written(path):
    """Heap memory and slices begin anywhere."""
    data = os.urandom(3 * PAGE + 1)
    file = DirectFile(path, 0)
    file.write(memoryview(data)[1:])
    file.close()
    assert path.read_bytes() == data[1:]


def test_a_file_system_that_says_no_gets_it_the_other_way(path, room, monkeypatch):
    """Some take the flag and refuse the writing, as where blocks are larger."""
    plainly = os.write

    def write(descriptor, data):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return plainly(descriptor, data)

    monkeypatch.setattr("coordinator.direct.os.write", write)
    write_all(path, room, [16 * PAGE, 32 * PAGE])
    assert path.read_bytes() == room[: 32 * PAGE]


def test_a_file_system_without_the_flag_gets_it_the_other_way(path, room, monkeypatch):
    """The flag itself is refused there."""
    plainly = fcntl.fcntl

    def refuse(descriptor, command, *flags):
        if command == fcntl.F_SETFL and flags[0] & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return plainly(descriptor, command, *flags)

    monkeypatch.setattr("coordinator.direct.fcntl.fcntl", refuse)
    file = DirectFile(path, 0)
    assert not file.is_direct
    file.write(room)
    file.close()
    assert path.read_bytes() == room


def test_less_than_asked_for_is_gone_on_with(path, room, monkeypatch):
    """A disk may take a part, of any length."""
    plainly = os.write
    monkeypatch.setattr(
        "coordinator.direct.os.write",
        lambda descriptor, data: plainly(descriptor, data[: 3 * PAGE]),
    )
    write_all(path, room, [ROOM])
    assert path.read_bytes() == room


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_is_told(path, room, monkeypatch, number):
    """A full or broken disk is no matter of how it is written."""

    def fail(_descriptor, _data):
        raise OSError(number, os.strerror(number))

    file = DirectFile(path, 0)
    monkeypatch.setattr("coordinator.direct.os.write", fail)
    with pytest.raises(OSError, match=os.strerror(number)):
        file.write(room)
    file.close()


def test_no_link_is_followed(path, tmp_path):
    """A name that leads elsewhere is not written through."""
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        DirectFile(path, 0)
    assert not (tmp_path / "elsewhere").exists()
