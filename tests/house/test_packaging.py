"""What is committed and what is shipped: generated code is fresh, the wheel runs where nothing else is."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.packaging


def run(*command, cwd=ROOT, **env):
    """Run a command; its output is the message when it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=os.environ | env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (
        f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    )
    return done.stdout


def test_generated_code_is_fresh(tmp_path):
    """What `make protos` would make is what is committed, byte for byte."""
    protos = sorted(path.relative_to(ROOT) for path in ROOT.glob("protos/share_dist/pb/*.proto"))
    run(
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        "--proto_path=protos",
        f"--python_out={tmp_path}",
        f"--pyi_out={tmp_path}",
        f"--grpc_python_out={tmp_path}",
        *protos,
    )
    made = {path.name: path.read_text() for path in (tmp_path / "share_dist/pb").iterdir()}
    held = {
        path.name: path.read_text()
        for path in (ROOT / "share_dist/pb").iterdir()
        if path.is_file() and path.name != "__init__.py"
    }
    assert len(made) == 3 * len(protos)
    assert made == held, "run `make protos` and commit what it makes"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy without what git ignores."""
    source = tmp_path_factory.mktemp("source") / "share-dist"
    files = run("git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    for name in files:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    run(
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--installer=uv",
        "--outdir",
        source / "dist",
        cwd=source,
    )
    (built,) = (source / "dist").glob("*.whl")
    return built


def test_the_wheel_holds_the_three_packages_and_their_data(wheel):
    """Packages, type markers, generated code and data files are inside; tests are not."""
    names = zipfile.ZipFile(wheel).namelist()
    for package in ("share_dist", "coordinator", "worker"):
        assert f"{package}/py.typed" in names
    assert "share_dist/pb/coordinator_pb2.pyi" in names
    assert "share_dist/commands/kit_sources.toml" in names
    assert "coordinator/web/templates/subspace.html.j2" in names
    assert {"uPlot.iife.min.js", "uPlot-LICENSE.txt", "page.css"} <= {
        name.rpartition("/")[2] for name in names if name.startswith("coordinator/web/static/")
    }
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith("tests/") for name in names)


def test_a_plain_client_runs_from_an_empty_environment(wheel, tmp_path):
    """Without Ray, transformers or a database, the command line and the library both work."""
    python = tmp_path / "venv/bin/python"
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    run(
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "-c",
        ROOT / "constraints.txt",
        wheel,
        cwd=tmp_path,
    )
    script = python.with_name("share-dist")
    assert "quickstart" in run(script, "--help", cwd=tmp_path)
    assert run(script, "--version", cwd=tmp_path).startswith("share-dist 0.")
    listing = run(python, "-m", "pip", "list", cwd=tmp_path).lower()
    for absent in ("ray ", "transformers ", "sqlalchemy ", "datasets "):
        assert f"\n{absent}" not in listing
    run(
        python,
        "-c",
        "import share_dist; [getattr(share_dist, n) for n in share_dist.__all__]",
        cwd=tmp_path,
    )
    refused = subprocess.run(
        [script, "coordinator", "serve", "--store", tmp_path / "store"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2
    assert "pip install 'share-dist[coordinator]'" in refused.stderr
    assert not (tmp_path / "store").exists()
