"""
Time and memory of one training step, beside peft's LoRA on the same model: `make bench`, `make bench-gpu`.

Query and value are adapted. All variants see the same batch, step with AdamW and take turns, round by
round. Peak memory is that of the tensors alive at once in a step: the frozen model, what is trained, its
gradients and moments, and activations, as torch's own allocator counts them. Beside the ratio of times
stands that of the processor's own, which other programs on the machine hardly move.
"""

import argparse
import copy
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from share_dist.adapters import find_targets, inject
from share_dist.core.values import Basis, LayerSubspace, Subspace
from tests.benchmarks.measuring import ratios, seconds_of, spread, write
from tests.benchmarks.peer_time import quiet

PEFT = "peft LoRA r=8"
TEMPORARY = "share-dist, k=32, p=8, f=2"
COEFFICIENTS = "share-dist, coefficients only"
TARGETS = {"minilm": ["query", "value"], "mistral": ["q_proj", "v_proj"]}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> None:
    """Run the benchmark and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--model",
        choices=sorted(TARGETS),
        default="minilm",
        help="the kit's, or layers of Mistral-7B's shape with random weights",
    )
    parser.add_argument("--layers", type=int, default=4, help="of Mistral's shape")
    parser.add_argument("--dtypes", nargs="+", choices=sorted(DTYPES), default=list(DTYPES))
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--output", type=Path, default=None, help="file for the JSON")
    options = parser.parse_args()  # fmt: skip
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("not run: no CUDA device")
    quiet()
    results = {dtype: _measure(options, DTYPES[dtype]) for dtype in options.dtypes}
    is_cuda = options.device == "cuda"
    report = {
        "device": torch.cuda.get_device_name() if is_cuda else "cpu",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "model": options.model if options.model == "minilm" else f"{options.layers} layers of Mistral-7B's shape",
        "rows": options.rows,
        "tokens": options.tokens,
        "rounds": options.rounds,
        "results": results,
    }  # fmt: skip
    write(report, options.output)


@dataclass(frozen=True)
class Variant:
    """
    One way to train: a model with its adapter in it.

    Args:
        step: Forward, backward and optimiser's step.
        resident_bytes: Of the model, what is trained and its moments, between two steps.
        trained: Numbers that are trained.
    """

    step: Callable[[], None]
    resident_bytes: Callable[[], int]
    trained: int


def _measure(options: argparse.Namespace, dtype: torch.dtype) -> dict[str, Any]:
    base = _base(options).to(options.device, dtype)
    batch = torch.randint(1000, 20000, (options.rows, options.tokens)).to(options.device)
    targets = TARGETS[options.model]
    variants = {
        PEFT: _peft(copy.deepcopy(base), targets, batch),
        TEMPORARY: _ours(copy.deepcopy(base), targets, batch, num_temporary=2),
        COEFFICIENTS: _ours(copy.deepcopy(base), targets, batch, num_temporary=0),
    }
    del base
    taken: dict[str, list[float]] = {name: [] for name in variants}
    computed: dict[str, list[float]] = {name: [] for name in variants}
    for round_number in range(options.rounds + 2):
        for name, variant in variants.items():
            begun = time.process_time()
            seconds = seconds_of(lambda step=variant.step: _synchronised(step, options.device))
            if round_number >= 2:
                taken[name].append(seconds)
                computed[name].append(time.process_time() - begun)
    peaks = {name: _peak_bytes(variant, options.device) for name, variant in variants.items()}
    found = {}
    for name, variant in variants.items():
        found[name] = {
            "seconds": spread(taken[name], 5),
            "time_to_peft": ratios(taken[name], taken[PEFT]),
            "processor_time_to_peft": ratios(computed[name], computed[PEFT]),
            "peak_bytes": peaks[name],
            "memory_to_peft": round(peaks[name] / peaks[PEFT], 4),
            "trained": variant.trained,
        }
        print(
            f"{dtype}: {name:32s} {statistics.median(taken[name]) * 1e3:8.1f} ms, "
            f"{found[name]['time_to_peft']['median']:.3f} of peft's time "
            f"({found[name]['processor_time_to_peft']['median']:.3f} of the processor's), "
            f"{peaks[name] / 1e6:8.1f} MB, {found[name]['memory_to_peft']:.3f} of peft's memory, "
            f"{variant.trained:,} numbers trained",
            flush=True,
        )
    return found


def _base(options: argparse.Namespace) -> nn.Module:
    import transformers

    from share_dist.commands.kit import require_source

    torch.manual_seed(0)
    if options.model == "minilm":
        return transformers.AutoModel.from_pretrained(require_source("model"))
    config = transformers.MistralConfig(num_hidden_layers=options.layers)
    return transformers.AutoModel.from_config(config)


def _peft(model: nn.Module, targets: Sequence[str], batch: Tensor) -> Variant:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(r=8, lora_alpha=8, target_modules=list(targets)))
    return _variant(adapted, [each for each in adapted.parameters() if each.requires_grad], batch, [])  # fmt: skip


def _ours(
    model: nn.Module, targets: Sequence[str], batch: Tensor, *, num_temporary: int
) -> Variant:
    generator = torch.Generator().manual_seed(0)

    def basis(features: int) -> Basis:
        vectors, _ = torch.linalg.qr(torch.randn(features, 32, generator=generator))
        return Basis(vectors, torch.ones(32, dtype=torch.float64), 32)

    layers = {
        name: LayerSubspace(basis(shape.in_features), basis(shape.out_features))
        for name, shape in find_targets(model, targets).items()
    }
    injected = inject(model, Subspace(layers, version=1), pseudo_rank=8, num_temporary=num_temporary)  # fmt: skip
    injected.add_task("task")
    injected.activate("task")
    bases = [basis.leading for layer in layers.values() for _, basis in layer]
    return _variant(model, injected.trainable_parameters("task"), batch, bases)


def _variant(
    model: nn.Module, trained: Sequence[nn.Parameter], batch: Tensor, others: Sequence[Tensor]
) -> Variant:
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    model.train()

    def step() -> None:
        model(input_ids=batch).last_hidden_state.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    def resident_bytes() -> int:
        moments = [
            each for state in optimizer.state.values() for each in state.values() if torch.is_tensor(each)
        ]  # fmt: skip
        held = {each.data_ptr(): each for each in (*model.parameters(), *model.buffers(), *trained, *moments, *others)}  # fmt: skip
        return sum(each.numel() * each.element_size() for each in held.values())

    return Variant(step, resident_bytes, sum(each.numel() for each in trained))


def _synchronised(step: Callable[[], None], device: str) -> None:
    step()
    if device == "cuda":
        torch.cuda.synchronize()


def _peak_bytes(variant: Variant, device: str) -> int:
    """Bytes of all tensors alive at once at the worst moment of a step."""
    gc.collect()
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        variant.step()
        return variant.resident_bytes() + torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        variant.step()
    events = [
        event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    peak = alive = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return variant.resident_bytes() + peak


if __name__ == "__main__":
    main()
