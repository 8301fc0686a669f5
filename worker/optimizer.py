"""The optimiser: AdamW over named parameters, with a schedule, clipping and, for fp16, scaled losses."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worker.stream import Schedule, TrainingSettings
from worker.training_state import ADAPTER

_SCALE, _GROWTH = "scaler/scale", "scaler/growth_tracker"

SMALLEST_SCALE = 1.0
"""Where even an unscaled loss overflows in fp16, it is not the scale that is wrong."""


@dataclass(frozen=True)
class Trainee:
    """
    What an optimiser works on.

    Args:
        parameters: Name -> parameter.
        learning_rates: Name -> learning rate at its peak.
    """

    parameters: Mapping[str, nn.Parameter]
    learning_rates: Mapping[str, float]


class Optimizer:
    """
    Steps for a trainee and its head.

    Args:
        trainee: Parameters with their peak learning rates; not pulled to zero.
        head: Has the learning rate and the weight decay of the settings.
        settings: How tasks are learnt.
        num_steps: Over which the schedule extends.
        device: Where the parameters lie.
    """

    def __init__(
        self,
        trainee: Trainee,
        head: nn.Module,
        settings: TrainingSettings,
        num_steps: int,
        device: torch.device,
    ) -> None:
        self.rate_share = 1.0
        self._named = {f"{ADAPTER}{name}": each for name, each in trainee.parameters.items()}
        self._named |= {f"head.{name}": each for name, each in head.named_parameters()}
        peaks = {f"{ADAPTER}{name}": rate for name, rate in trainee.learning_rates.items()}
        groups = [
            {
                "params": [parameter],
                "lr": 0.0,
                "peak": peaks.get(name, settings.head_learning_rate),
                "weight_decay": 0.0 if name in peaks else settings.weight_decay,
            }
            for name, parameter in self._named.items()
        ]
        self._adamw = torch.optim.AdamW(groups)
        self._scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
        self._settings = settings
        self._share_of_peak = _Schedule(settings.schedule, settings.warmup, num_steps)

    def zero_grad(self) -> None:
        """Forget gradients."""
        self._adamw.zero_grad()

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradient to what has gathered."""
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch leaves it so

    def step(self, step: int, loss: Tensor) -> bool:
        """
        Take one step with the gradients that have gathered.

        Args:
            step: Which, for the schedule.
            loss: What they are gradients of.

        Returns:
            False, and no parameter is changed, when a number is not finite. A step
            of fp16 whose gradients overflow is left out, and is no such case.
        """
        self._scaler.unscale_(self._adamw)
        norm = torch.nn.utils.clip_grad_norm_(
            list(self._named.values()), self._settings.max_gradient_norm
        )
        if not torch.isfinite(loss):
            return False
        if not torch.isfinite(norm) and not self._can_scale_down():
            return False
        for group in self._adamw.param_groups:
            group["lr"] = group["peak"] * self._share_of_peak(step) * self.rate_share
        self._scaler.step(self._adamw)
        self._scaler.update()
        return True

    def _can_scale_down(self) -> bool:
        return self._scaler.is_enabled() and self._scaler.get_scale() > SMALLEST_SCALE

    def tensors(self) -> dict[str, Tensor]:
        """Copies of all parameters, on the CPU."""
        return {name: each.detach().cpu().clone() for name, each in self._named.items()}

    def memory(self) -> dict[str, Tensor]:
        """Copies of what it remembers from step to step, on the CPU."""
        moments = {
            f"{name}/{key}": value.detach().cpu().clone()
            for name, parameter in self._named.items()
            for key, value in self._adamw.state[parameter].items()
        }
        if self._scaler.is_enabled():
            scaler = self._scaler.state_dict()
            moments[_SCALE] = torch.tensor(scaler["scale"])
            moments[_GROWTH] = torch.tensor(scaler["_growth_tracker"])
        return moments

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put values into the parameters."""
        for name, parameter in self._named.items():
            parameter.copy_(tensors[name])

    def restore(self, tensors: Mapping[str, Tensor], memory: Mapping[str, Tensor]) -> None:
        """Go on with these values, and as if it remembered this."""
        self.load(tensors)
        self._adamw.state.clear()
        for key, value in memory.items():
            name, _, moment = key.rpartition("/")
            if name in self._named:
                device = "cpu" if moment == "step" else self._named[name].device
                self._adamw.state[self._named[name]][moment] = value.clone().to(device)
        if _SCALE in memory:
            kept = {"scale": memory[_SCALE].item(), "_growth_tracker": memory[_GROWTH].item()}
            self._scaler.load_state_dict({**self._scaler.state_dict(), **kept})


class _Schedule:
    """
    Share of the peak learning rate at each step, by ``transformers``.

    It rises to one within the warm-up, whose first step is not lost to a rate of zero.
    """

    def __init__(self, name: Schedule, warmup: float, num_steps: int) -> None:
        import transformers

        self._rising = max(1, round(warmup * num_steps))
        # a scheduler needs an optimiser; this one is never stepped
        idle = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        scheduler = transformers.get_scheduler(
            "constant_with_warmup" if name == "constant" else name,
            idle,
            num_warmup_steps=self._rising,
            num_training_steps=num_steps,
        )
        (self._share,) = scheduler.lr_lambdas

    def __call__(self, step: int) -> float:
        share: float = self._share(step + 1 if step < self._rising else step)
        return share
