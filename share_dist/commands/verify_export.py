"""
Pull one task, write it as a PEFT LoRA, and let plain `peft` compute its logits beside ours.

Run as a process of its own, ``python -m share_dist.commands.verify_export``: what
it shows is what any other client with an address and the base model would get.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import typer
from torch import Tensor

from share_dist.adapters import inject, lora_from_task, save_lora
from share_dist.adapters.files import write_tensors
from share_dist.client import ShareClient
from share_dist.commands.console import run
from share_dist.core.values import Head

if TYPE_CHECKING:
    from share_dist.wire.records import PulledTask

TEXTS = (
    "A film that trusts its audience, and is rewarded for it.",
    "I would not recommend this to my worst enemy.",
    "The new policy was announced on Tuesday, after weeks of talks.",
    "Battery life is short, but the picture is wonderful :)",
    "Shares of the company fell three percent in early trading.",
    "The telescope will measure the faint light of distant galaxies.",
    "Which engine oil is best for an old motorcycle in winter?",
    "Thank you all for your support tonight!",
)


def verify(
    address: str = typer.Option(..., "--coordinator"),
    task: str = typer.Option(..., "--task"),
    model: Path = typer.Option(..., "--model"),  # noqa: B008 - typer's form
    output: Path = typer.Option(..., "--output"),  # noqa: B008
) -> None:
    """Print the largest difference between the logits of `peft` and ours, as JSON."""
    with ShareClient(address) as client:
        pulled = client.pull_task(task)
    lora = lora_from_task(pulled.subspace, pulled.coefficients)
    save_lora(lora, output, base_model=str(model), task_type="FEATURE_EXTRACTION")
    write_tensors(output / "head.safetensors", pulled.head.tensors, {"format": "pt"})
    ours, base = _ours(model, pulled)
    theirs = _theirs(model, output, pulled.head)
    facts = {
        "task": task,
        "version": pulled.coefficients.version,
        "directory": str(output),
        "num_texts": len(TEXTS),
        "largest_difference": float((ours - theirs).abs().max()),
        "largest_logit": float(ours.abs().max()),
        "largest_difference_to_base": float((ours - base).abs().max()),
        "same_predictions": bool((ours.argmax(-1) == theirs.argmax(-1)).all()),
    }
    typer.echo(json.dumps(facts))


def _ours(model: Path, pulled: "PulledTask") -> tuple[Tensor, Tensor]:
    backbone = _backbone(model)
    with inject(backbone, pulled.subspace) as injected:
        base = _logits(backbone, model, pulled.head)
        injected.set_coefficients(pulled.summary.task_id, pulled.coefficients)
        injected.activate(pulled.summary.task_id)
        return _logits(backbone, model, pulled.head), base


def _theirs(model: Path, output: Path, head: Head) -> Tensor:
    from peft import PeftModel

    return _logits(PeftModel.from_pretrained(_backbone(model), str(output)), model, head)


def _backbone(model: Path) -> Any:
    from transformers import AutoModel

    return AutoModel.from_pretrained(model).eval()


@torch.no_grad()
def _logits(backbone: Any, model: Path, head: Head) -> Tensor:
    """Mean pooling over the tokens, then the task's own linear head."""
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(model)(
        list(TEXTS), padding=True, truncation=True, max_length=32, return_tensors="pt"
    )
    hidden: Tensor = backbone(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    pooled = (hidden * mask).sum(1) / mask.sum(1)
    logits: Tensor = pooled @ head.tensors["weight"].mT + head.tensors["bias"]
    return logits


if __name__ == "__main__":
    app = typer.Typer()
    app.command()(verify)
    run(app)
