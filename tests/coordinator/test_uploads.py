"""What has come of a push that was cut off stays, for its own principal, and never for good."""

import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.store.blobs import LocalBlobs
from coordinator.uploads import NOTHING, Upload, UploadSpool, upload_key
from share_dist.errors import ChecksumMismatch, StreamTruncated
from share_dist.wire.chunks import MIN_CHUNK_BYTES, cut

LIMIT = 2**30
PAYLOAD = os.urandom(5 * MIN_CHUNK_BYTES + 7)
PIECES = cut(PAYLOAD, chunk_bytes=MIN_CHUNK_BYTES)
CHUNKS = list(PIECES.chunks())
KEY = upload_key("default", "north", "u1", PIECES.header.sha256)
FILE_BYTES = MIN_CHUNK_BYTES


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "uploads"


@pytest.fixture
def spool(folder):
    return UploadSpool(folder, LIMIT)


def send(spool, first=0, last=None, key=KEY):
    upload = spool.open(key, PIECES.header, first, LIMIT)
    for chunk in CHUNKS[first:last]:
        upload.add(chunk)
    return upload


def whole(upload):
    payload = upload.finish()
    upload.close(is_done=True)
    return payload


@pytest.mark.parametrize("num_sent", range(6))
@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_push_goes_on_where_it_was_cut_off(folder, spool, num_sent, is_restarted):
    """After any number of chunks, also in another process, the rest is enough."""
    send(spool, last=num_sent).close(is_done=False)
    if is_restarted:
        spool = UploadSpool(folder, LIMIT)
    progress = spool.progress(KEY)
    expected = min(num_sent, 5)
    assert (progress.num_chunks, progress.num_bytes) == (expected, expected * MIN_CHUNK_BYTES)
    assert progress.prefix_sha256 == PIECES.prefix_sha256(expected)

    upload = send(spool, progress.num_chunks)
    assert upload.finish() == PAYLOAD
    upload.close(is_done=True)
    assert spool.progress(KEY) == NOTHING
    assert list(folder.iterdir()) == []


def test_a_kill_in_the_middle_of_a_chunk_costs_that_chunk(folder, spool):
    """Half a chunk at the end of a file does not count."""
    upload = send(spool, last=2)
    (file,) = folder.iterdir()
    with file.open("ab") as half:
        half.write(b"half")

    again = UploadSpool(folder, LIMIT)
    assert again.progress(KEY).num_chunks == 2
    assert whole(send(again, 2)) == PAYLOAD
    upload.close(is_done=False)


def test_a_small_push_never_touches_the_disk(folder, spool):
    """One chunk is sent again as fast as it could be kept."""
    pieces = cut(b"small")
    upload = spool.open(KEY, pieces.header, 0, LIMIT)
    upload.add(next(pieces.chunks()))
    upload.close(is_done=False)
    assert list(folder.iterdir()) == []
    assert spool.progress(KEY) == NOTHING


def test_less_than_the_sender_counts_on_is_told(spool):
    """What was evicted meanwhile must be sent again, and the error says so."""
    send(spool, last=2).close(is_done=False)
    with pytest.raises(StreamTruncated, match="chunk 3 was to come first, of those before it 2"):
        spool.open(KEY, PIECES.header, 3, LIMIT)
    other = upload_key("default", "south", "u1", PIECES.header.sha256)
    with pytest.raises(StreamTruncated, match="of those before it 0"):
        spool.open(other, PIECES.header, 2, LIMIT)


def test_a_damaged_file_is_noticed_by_its_digest(folder, spool):
    """What the disk changed is not what the sender has: both ends see it before it is used."""
    send(spool, last=3).close(is_done=False)
    (file,) = folder.iterdir()
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    assert spool.progress(KEY).prefix_sha256 != PIECES.prefix_sha256(3)
    upload = spool.open(KEY, PIECES.header, 3, LIMIT)
    with pytest.raises(ChecksumMismatch):
        upload.add(CHUNKS[3])
    upload.close(is_done=False)


@pytest.mark.parametrize("data", [b"", b"1234567", bytes(8), b"\xff" * 100, bytes(8) + b"x" * 99])
def test_any_file_is_an_upload_or_nothing(folder, spool, data):
    """A file of an unclean end is no upload, and no error."""
    send(spool, last=1).close(is_done=False)
    (file,) = folder.iterdir()
    file.write_bytes(data)
    again = UploadSpool(folder, LIMIT)
    assert again.progress(KEY) == NOTHING
    assert whole(send(again)) == PAYLOAD


def test_two_pushes_of_one_update_do_not_corrupt_each_other(spool):
    """The newer one goes on with the file; the older one finishes without it."""
    older = send(spool, last=2)
    newer = send(spool, 2, 3)
    for chunk in CHUNKS[2:]:
        older.add(chunk)
    assert spool.progress(KEY).num_chunks == 3
    assert older.finish() == PAYLOAD
    older.close(is_done=True)
    assert spool.progress(KEY).num_chunks == 3, "the file is the newer one's"
    for chunk in CHUNKS[3:]:
        newer.add(chunk)
    assert newer.finish() == PAYLOAD
    newer.close(is_done=True)
    assert spool.progress(KEY) == NOTHING


def test_many_at_once_finish_whole(folder, spool):
    """Pushes of one update from many threads all join to the payload."""

    def push(_number):
        return bytes(whole(send(spool)))

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(push, range(32))) == {PAYLOAD}
    assert list(folder.iterdir()) == []


def test_what_was_not_said_to_be_sound_is_not_kept(folder, spool):
    """A chunk without the digest of its prefix may be damaged: it is taken, not kept."""
    upload = spool.open(KEY, PIECES.header, 0, LIMIT)
    for chunk in PIECES.chunks():
        chunk.ClearField("prefix_sha256")
        upload.add(chunk)
    upload.close(is_done=False)
    assert upload.finish() == PAYLOAD
    assert list(folder.iterdir()) == []


def test_the_oldest_go_when_there_is_no_room(folder):
    """The bound holds for all files together; the newest stay."""
    spool = UploadSpool(folder, 2 * FILE_BYTES)
    keys = [upload_key("default", "north", f"u{i}", PIECES.header.sha256) for i in range(4)]
    for key in keys:
        send(spool, last=1, key=key).close(is_done=False)
    assert [spool.progress(key).num_chunks for key in keys] == [0, 0, 1, 1]
    assert spool.num_bytes == 2 * FILE_BYTES


def test_an_upload_that_is_evicted_goes_on_in_memory(folder):
    """No room on disk ends the keeping, not the push."""
    spool = UploadSpool(folder, 2 * FILE_BYTES)
    upload = send(spool)
    assert upload.finish() == PAYLOAD
    upload.close(is_done=True)
    assert list(folder.iterdir()) == []


def test_tiny_uploads_are_bounded_in_number(folder, spool, monkeypatch):
    """However short each is: the oldest go, and none is remembered of which nothing came."""
    monkeypatch.setattr("coordinator.uploads.MAX_UPLOADS", 3)
    keys = [upload_key("default", "north", f"u{i}", PIECES.header.sha256) for i in range(9)]
    for key in keys[:6]:
        send(spool, last=1, key=key).close(is_done=False)
    for key in keys[6:]:
        with pytest.raises(StreamTruncated):
            spool.open(key, PIECES.header, 1, LIMIT)
    assert [key for key in keys if spool.progress(key).num_chunks] == keys[3:6]
    assert len(list(folder.iterdir())) == len(spool._kept) == 3


def test_a_cut_waits_for_the_chunk_in_hand(folder, spool, monkeypatch):
    """A thread that is writing when its push is cut off writes into its own file, to the end."""
    upload, write = send(spool, last=1), Upload._write
    is_writing, may_write = threading.Event(), threading.Event()

    def slow(*arguments):
        is_writing.set()
        may_write.wait(60)
        write(*arguments)

    monkeypatch.setattr("coordinator.uploads.Upload._write", slow)
    with ThreadPoolExecutor(2) as threads:
        adding = threads.submit(upload.add, CHUNKS[1])
        is_writing.wait(60)
        closing = threads.submit(upload.close, is_done=False)
        wait([closing], timeout=0.2)
        may_write.set()
        adding.result(60)
        closing.result(60)
    assert spool.progress(KEY).num_chunks == 2
    monkeypatch.undo()
    assert whole(send(spool, 2)) == PAYLOAD


@pytest.mark.parametrize("num_first", [0, 8, 11])
def test_a_large_push_is_kept_past_the_cache_as_well(folder, monkeypatch, num_first):
    """Several chunks at a time, cut off and gone on with; the file that is handed over has all of them."""
    monkeypatch.setattr("coordinator.uploads._DIRECT_FROM_BYTES", 2**20)
    payload = os.urandom(20 * MIN_CHUNK_BYTES + 7)
    pieces = cut(payload, chunk_bytes=MIN_CHUNK_BYTES)

    def receive(first, last):
        upload = UploadSpool(folder, LIMIT, hands_over=True).open(KEY, pieces.header, first, LIMIT)
        checked = [upload.check(chunk) for chunk in [*pieces.chunks()][first:last]]
        for place in range(0, len(checked), 8):
            upload.keep(checked[place : place + 8])
        return upload

    receive(0, num_first).close(is_done=False)
    assert UploadSpool(folder, LIMIT).progress(KEY).num_chunks == num_first
    upload = receive(num_first, None)
    assert upload.finish() == payload
    file = upload.hand_over()
    assert file.sync()
    assert file.path.read_bytes() == payload
    file.discard()
    upload.close(is_done=True)


def test_of_several_chunks_those_are_kept_that_can_be_gone_on_from(spool):
    """One without its digest ends the keeping, in the middle of what is written at once."""
    upload = spool.open(KEY, PIECES.header, 0, LIMIT)
    chunks = [*PIECES.chunks()]
    chunks[3].ClearField("prefix_sha256")
    upload.keep([upload.check(chunk) for chunk in chunks])
    assert upload.finish() == PAYLOAD
    assert upload.hand_over() is None
    upload.close(is_done=False)
    assert spool.progress(KEY).num_chunks == 3
    assert whole(send(spool, 3)) == PAYLOAD


def test_a_full_disk_ends_the_keeping_and_not_the_push(folder, spool, monkeypatch):
    """The push is received as if nothing were kept."""

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("coordinator.uploads.Upload._write", full)
    upload = send(spool)
    assert upload.finish() == PAYLOAD
    upload.close(is_done=True)
    assert list(folder.iterdir()) == []


def test_what_is_old_or_strange_is_gone_after_a_start(folder, spool):
    """Files that nobody came back for are removed; other people's folders are let be."""
    send(spool, last=1).close(is_done=False)
    (file,) = folder.iterdir()
    (folder / "note.txt").write_text("not ours")
    (folder / "folder").mkdir()
    os.utime(file, (0, 0))
    UploadSpool(folder, LIMIT)
    assert [path.name for path in folder.iterdir()] == ["folder"]


def test_no_word_of_a_peer_is_part_of_a_path(folder, spool):
    """Names are digests: of other words, of words that are split elsewhere, of other payloads."""
    words = [("a", "b", "c"), ("ab", "", "c"), ("a", "bc", ""), ("../..", "/", "\x00")]
    keys = {upload_key(*each, bytes(32)) for each in words}
    keys.add(upload_key("a", "b", "c", b"1" * 32))
    assert len(keys) == 5
    for key in keys:
        assert set(key) <= set("0123456789abcdef")
        send(spool, last=1, key=key).close(is_done=False)
    assert {path.name for path in folder.iterdir()} == {
        f"{key}.{MIN_CHUNK_BYTES}.part" for key in keys
    }
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())


@given(st.lists(st.integers(0, 6), max_size=6), st.booleans())
@settings(max_examples=40, deadline=None)
def test_any_number_of_cuts_ends_in_the_payload(tmp_path_factory, cuts, restarts):
    """However often it is cut and wherever, what is there is a prefix, and the end is the payload."""
    folder = tmp_path_factory.mktemp("uploads")
    spool = UploadSpool(folder, LIMIT)
    for num_more in cuts:
        first = spool.progress(KEY).num_chunks
        send(spool, first, first + num_more).close(is_done=False)
        if restarts:
            spool = UploadSpool(folder, LIMIT)
        progress = spool.progress(KEY)
        assert progress.prefix_sha256 == hashlib.sha256(PAYLOAD[: progress.num_bytes]).digest()
    assert whole(send(spool, spool.progress(KEY).num_chunks)) == PAYLOAD


@pytest.fixture
def giving(folder):
    return UploadSpool(folder, LIMIT, hands_over=True)


@pytest.mark.parametrize("num_before", [0, 2, 5])
def test_what_is_whole_can_be_handed_over(folder, giving, num_before):
    """Also after a cut: the file has all of the payload, is the holder's own, and goes with it."""
    send(giving, last=num_before).close(is_done=False)
    upload = send(giving, giving.progress(KEY).num_chunks)
    assert upload.finish() == PAYLOAD
    file = upload.hand_over()
    upload.close(is_done=True)
    assert file.path.read_bytes() == PAYLOAD
    assert giving.progress(KEY) == NOTHING
    assert file.sync()
    assert file.sync()
    file.discard()
    assert list(folder.iterdir()) == []


def test_only_who_holds_the_file_hands_it_over(giving):
    """A push that another one went on with, and one that is not wanted as a file, have none."""
    older = send(giving, last=2)
    newer = send(giving, 2)
    for chunk in CHUNKS[2:]:
        older.add(chunk)
    assert older.finish() == newer.finish() == PAYLOAD
    assert older.hand_over() is None
    file = newer.hand_over()
    assert file.path.read_bytes() == PAYLOAD
    assert newer.hand_over() is None
    for upload in (older, newer):
        upload.close(is_done=True)
    file.discard()


def test_a_file_that_was_cut_short_is_not_handed_over(folder, giving):
    """What the disk lost is written anew by the store."""
    upload = send(giving)
    (file,) = folder.iterdir()
    os.truncate(file, len(PAYLOAD) - 1)
    assert upload.finish() == PAYLOAD
    assert upload.hand_over() is None
    upload.close(is_done=True)
    assert list(folder.iterdir()) == []


def test_many_at_once_hand_over_whole_files(folder, giving):
    """However pushes of one update overtake each other, no file is changed once it is handed over."""

    def push(_number):
        upload = send(giving)
        upload.finish()
        file = upload.hand_over()
        found = None if file is None else file.path.read_bytes()
        upload.close(is_done=True)
        if file:
            file.discard()
        return found

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(push, range(32))) <= {PAYLOAD, None}
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["rename", "unlink"])
def test_a_name_is_free_only_once_its_file_is_out_of_the_way(giving, monkeypatch, name):
    """A push of the same update that begins meanwhile neither empties a file that is handed over, nor loses its own."""
    act, others = getattr(Path, name), []

    def slowly(path, *arguments, **options):
        if not others:
            others.append(threads.submit(send, giving, 0, 2))
            wait(others, 0.5)
        return act(path, *arguments, **options)

    with ThreadPoolExecutor(1) as threads:
        upload = send(giving)
        upload.finish()
        monkeypatch.setattr(Path, name, slowly)
        file = upload.hand_over() if name == "rename" else None
        upload.close(is_done=True)
        others[0].result().close(is_done=False)
    assert giving.progress(KEY).num_chunks == 2
    if file:
        assert file.path.read_bytes() == PAYLOAD
        file.discard()


def test_a_kill_after_the_hand_over_leaves_nothing(folder, giving):
    """The next start removes what nobody will come back for."""
    upload = send(giving)
    upload.finish()
    file = upload.hand_over()
    assert [path.suffix for path in folder.iterdir()] == [".whole"]
    UploadSpool(folder, LIMIT, hands_over=True)
    assert list(folder.iterdir()) == []
    file.discard()


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_store_keeps_what_is_handed_over(tmp_path, giving, is_lost):
    """By renaming the file; where it is gone, by writing the bytes."""
    upload = send(giving)
    payload, file = upload.finish(), upload.hand_over()
    inode = file.path.stat().st_ino
    if is_lost:
        file.path.unlink()
    digest = hashlib.sha256(PAYLOAD).hexdigest()
    blobs = LocalBlobs(tmp_path / "blobs")
    blobs.write(digest, payload, "update", file)
    (kept,) = blobs.path.iterdir()
    assert blobs.read(digest) == PAYLOAD
    assert (kept.stat().st_ino == inode) or is_lost
    file.discard()
    assert blobs.read(digest) == PAYLOAD
