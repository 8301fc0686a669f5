import hashlib
import io
import json
import tarfile
import zipfile

import pytest
from typer.testing import CliRunner

from share_dist.commands import kit
from share_dist.errors import ChecksumMismatch, StreamError

ROWS, NOTES, LICENCE = b"1\tgood\n", b"origin: here\n", b"do as you like\n"


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


def source(name, form, filename, package, *files):
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
    monkeypatch.setattr(kit, "kit_sources", lambda: (words, notes))
    return folder


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def listed(folder):
    return sorted(str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file())


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
    with pytest.raises(StreamError, match="holds no fetched kit: run `share-dist kit fetch`"):
        kit.require_kit(cache)


def test_without_a_network_pip_has_the_word(packages, cache, monkeypatch):
    """When pip finds nothing, its last lines and the way around are in the message."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(StreamError, match=r"No matching distribution(.|\n)*--packages"):
        kit.fetch_kit(cache)


def test_the_environment_names_another_cache(packages, cache, monkeypatch):
    """$SHARE_DIST_KIT is where the kit is looked for; an argument wins over it."""
    monkeypatch.setenv(kit.CACHE_VARIABLE, str(cache))
    kit.fetch_kit(packages=packages)
    assert kit.require_kit() == cache
    assert kit.kit_folder(packages) == packages


def test_commands_speak_json(packages, cache):
    """Fetch and show print one JSON object each; show knows what is there."""
    at = ["--cache", str(cache), "--json"]
    shown = json.loads(CliRunner().invoke(kit.app, ["show", *at]).stdout)
    assert [each["is_fetched"] for each in shown["sources"]] == [False, False]
    fetched = CliRunner().invoke(kit.app, ["fetch", "--packages", str(packages), *at])
    assert json.loads(fetched.stdout)["folder"] == str(cache)
    shown = json.loads(CliRunner().invoke(kit.app, ["show", *at]).stdout)
    assert [each["is_fetched"] for each in shown["sources"]] == [True, True]


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
