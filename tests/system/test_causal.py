"""A real causal language model learns completions, through the command and a real coordinator."""

import json
import subprocess
import sys

import pytest

from share_dist.client import ShareClient
from share_dist.commands.kit import fetch_kit
from tests.coordinator.support import CoordinatorProcess

pytestmark = [pytest.mark.system, pytest.mark.kit, pytest.mark.timeout(1800)]

TASK = """
[[task]]
id = "{id}"
type = "causal-lm"
source = {{ entry_point = "worker.kit_tasks:{id}", arguments = {{ source = "movies" }} }}
max_train = 96
max_test = 48
"""


def test_a_causal_model_learns_two_tasks(tmp_path):
    """Verdicts come right that the frozen model never says, continuations grow likelier, and both are merged."""
    fetch_kit(parts=["generation"])
    stream = tmp_path / "talk.toml"
    tasks = "".join(TASK.format(id=name) for name in ("verdicts", "continuations"))
    stream.write_text(
        f'[model]\npath = "kit:smollm2"\ntargets = ["q_proj", "v_proj"]\n[training]\nepochs = 2\n'
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
