"""A tiny real model with LoRA directories that peft wrote, and a coordinator that has some of them."""

import contextlib
import io
import json
import os
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog

from share_dist.cli import app
from share_dist.commands.console import run
from share_dist.telemetry import configure_logging
from tests.coordinator.support import make_config, running


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """The one value on standard output."""
        return json.loads(self.stdout)

    @property
    def text(self) -> str:
        """What people read, with runs of white space as one space."""
        return " ".join((self.stdout + self.stderr).split())


def share_dist(*arguments: object) -> Ended:
    """Run the command line in this process, to its very end: the exit code."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
        pytest.raises(SystemExit) as ended,
    ):
        run(app, [str(argument) for argument in arguments])
    return Ended(int(ended.value.code or 0), stdout.getvalue(), stderr.getvalue())


# a shell that starts tests in the background has them ignore Ctrl-C, and so their children
_WITH_CTRL_C = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("share_dist", run_name="__main__", alter_sys=True)
"""


def start_share_dist(*arguments: object, **environment: str) -> "subprocess.Popen[str]":
    """Start the command line as a process."""
    return subprocess.Popen(
        [sys.executable, "-c", _WITH_CTRL_C, *(str(argument) for argument in arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )


def end_of(process: "subprocess.Popen[str]") -> Ended:
    """Wait for a process to end."""
    stdout, stderr = process.communicate(timeout=120)
    return Ended(process.returncode, stdout, stderr)


class Workshop:
    """
    Model folders and LoRA directories, all tiny and all real.

    ``adapters/cats, dogs, birds`` were trained on the bare model with ranks 4, 2 and 3,
    ``seq`` below a classifier that it brings along, ``keys`` on other layers, and
    ``other`` is a model of the same shapes with other weights.
    """

    def __init__(self, root: Path) -> None:
        import torch
        import transformers

        self.root = root
        config = transformers.BertConfig(
            vocab_size=50,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=48,
            max_position_embeddings=20,
            num_labels=3,
            initializer_range=0.2,
        )
        for seed, name in enumerate(("model", "other")):
            torch.manual_seed(seed)
            transformers.BertForSequenceClassification(config).save_pretrained(root / name)
        for seed, (name, rank) in enumerate({"cats": 4, "dogs": 2, "birds": 3, "fish": 2}.items()):
            self._train(name, rank, seed)
        self._train("seq", 2, 5, with_head=True)
        self._train("keys", 2, 6, targets=("key",))

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def other(self) -> Path:
        return self.root / "other"

    def adapter(self, name: str) -> Path:
        return self.root / "adapters" / name

    def _train(self, name, rank, seed, *, targets=("query", "value"), with_head=False):
        import peft
        import torch
        import transformers

        kind = (
            transformers.AutoModelForSequenceClassification if with_head else transformers.AutoModel
        )
        torch.manual_seed(seed)
        config = peft.LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            target_modules=list(targets),
            modules_to_save=["classifier"] if with_head else None,
        )
        model = peft.get_peft_model(kind.from_pretrained(self.model), config)
        for parameter_name, parameter in model.named_parameters():
            if "lora_" in parameter_name or "modules_to_save" in parameter_name:
                parameter.data.normal_(std=0.3)
        model.save_pretrained(self.adapter(name))


@pytest.fixture(scope="package", autouse=True)
def _coordinators_log_elsewhere():
    """Coordinators of these tests share a process with commands whose output is read."""
    configure_logging(stream=io.StringIO())
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def workshop(tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture
def fresh(tmp_path):
    """Address of a coordinator that knows nothing yet."""
    with running(make_config(tmp_path / "store", num_factors=16, oversample=0)) as coordinator:
        yield coordinator.address


@pytest.fixture(scope="module")
def stocked(workshop, tmp_path_factory):
    """Address of a coordinator with the tasks cats, dogs, birds and seq in versions 1 to 4; only to be read."""
    store = tmp_path_factory.mktemp("stocked") / "store"
    with running(make_config(store, num_factors=16, oversample=0)) as coordinator:
        # one after the other, so that each becomes a version of its own
        for name in ("cats", "dogs", "birds", "seq"):
            ended = share_dist(
                "push", workshop.adapter(name), "--model", workshop.model, "-c", coordinator.address
            )
            assert ended.code == 0, ended.text
        yield coordinator.address


@pytest.fixture(autouse=True)
def _no_width_of_the_runner(monkeypatch):
    """Write as into a pipe, however wide the terminal is that the tests were started from."""
    monkeypatch.delenv("COLUMNS", raising=False)
