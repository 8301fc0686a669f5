"""A frozen model is named by what its checkpoint holds."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from share_dist.adapters import load_frozen


@pytest.fixture
def without_pooler(tmp_path):
    """A tiny BERT, saved without the pooler that loading it draws at random."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=8,
    )
    model = BertModel(config, add_pooling_layer=False)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model", model


def test_what_is_drawn_at_random_is_not_part_of_the_name(without_pooler):
    """Two processes that load the same checkpoint agree, whatever their random poolers."""
    folder, _ = without_pooler
    torch.manual_seed(1)
    one, first = load_frozen(folder)
    torch.manual_seed(2)
    other, second = load_frozen(folder)
    assert not torch.equal(one.pooler.dense.weight, other.pooler.dense.weight)
    assert first == second


def test_another_checkpoint_has_another_name(without_pooler):
    """One weight matrix that differs changes the digest."""
    folder, model = without_pooler
    _, before = load_frozen(folder)
    with torch.no_grad():
        model.encoder.layer[0].output.dense.weight.mul_(1.5)
    model.save_pretrained(folder)
    _, after = load_frozen(folder)
    assert before != after


OWN_MEMORY = """
import sys
from pathlib import Path
from share_dist.adapters import load_frozen

def anonymous():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous"))

load_frozen(sys.argv[1])
before = anonymous()
model, _ = load_frozen(sys.argv[1])
model = model.float().to("cpu").eval()
sum(float(each.sum()) for each in model.parameters())
print(anonymous() - before)
"""


@pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(),
    reason="this system does not tell whose memory it is",
)
def test_processes_on_one_node_share_the_weights(tmp_path):
    """Of 41 MB, loaded and read by a worker, under a tenth is memory that no other process shares."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=160_000, hidden_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    BertModel(config).save_pretrained(tmp_path)
    command = [sys.executable, "-c", OWN_MEMORY, str(tmp_path)]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(told.stdout) < 4e6
