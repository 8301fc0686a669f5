"""Files that are whole or not there."""

import os
import stat
from pathlib import Path

import pytest

from share_dist.files import write_file


def synced(monkeypatch):
    """Whatever is flushed to disk from now on, in order, as paths."""
    paths = []
    fsync = os.fsync

    def note(descriptor):
        paths.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", note)
    return paths


def test_a_file_is_written_with_its_folders(tmp_path):
    """Missing folders are made, nothing else is left, and the file is replaced as a whole."""
    path = tmp_path / "a" / "b" / ("é" * 120)
    for data in (b"longer than the next", b"new"):
        write_file(path, data)

    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_a_file_may_be_read_by_whom_the_umask_allows(tmp_path):
    """What is written to be given away is not private to its writer."""
    (tmp_path / "plain").write_bytes(b"")
    write_file(tmp_path / "file", b"")

    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names of descriptors are in /proc")
def test_file_and_folders_are_flushed_to_disk(tmp_path, monkeypatch):
    """The bytes before the rename, the folder after it, and every folder that was made."""
    paths = synced(monkeypatch)
    write_file(tmp_path / "a" / "b" / "file", b"data")

    folders = [str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a" / "b")]
    assert paths[:2] == folders[:2]
    assert paths[2].endswith(".tmp")
    assert paths[3:] == folders[2:]


def test_a_failed_rename_leaves_nothing_behind(tmp_path):
    """What cannot be put in its place is removed."""
    (tmp_path / "folder").mkdir()

    with pytest.raises(IsADirectoryError):
        write_file(tmp_path / "folder", b"data")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
