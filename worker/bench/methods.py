"""The methods that a learning benchmark compares, and what each is."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from share_dist.errors import ConfigError
from worker.stream import Start

LORA_RANK = 8

RANDOM_CONTROL = "random-subspace"
"""Is computed with everything that is learnt in a subspace: it tells whether sharing helps at all."""

Scope = Literal["task", "stream"]
Within = Literal["", "others", "random", "weights", "inputs"]
Form = Literal["columns", "core", "diagonal"]
Keeping = Literal["", "orthogonal", "elastic", "projected", "decomposed"]


@dataclass(frozen=True)
class Peft:
    """
    A configuration of `peft`.

    Args:
        config: Name of its class.
        options: Its arguments, beside which layers are adapted.
        has_layers: Whether it can adapt some of the layers of a name, and leave others.
    """

    config: str
    options: Mapping[str, Any]
    has_layers: bool = True

    def make(self, targets: Sequence[str] | str, layers: Sequence[int] | None) -> Any:
        """
        Make it, for the modules of these names in these layers, or in all.

        Raises:
            ConfigError: Layers are given, and it adapts all of a name.
        """
        import peft

        config = getattr(peft, self.config)
        if self.has_layers:
            return config(target_modules=targets, layers_to_transform=layers, **self.options)
        if layers is not None:
            raise ConfigError(
                f"{self.config} of peft adapts all layers of a name, and the suite's [model] layers names some: take "
                "`layers` out, or the method",
                key="model.layers",
            )
        return config(target_modules=targets, **self.options)


@dataclass(frozen=True)
class Method:
    """
    One way to learn.

    Args:
        name: In suites and tables.
        about: In a sentence.
        scope: Whether a cell of it is one task, or the whole stream.
        rates: Learning rates that are tried on validation rows, of coefficients those of the suite's k and p; empty: the suite's own, untuned.
        source: Where it is described.
        needs: A method whose adapters of the other tasks it builds on; empty: none.
        within: In which subspace it begins: the other tasks' adapters', a random one, that of the frozen
            weights, or of what layers are given; empty: in none.
        form: What is trained in a subspace: coefficients of both sides, a ``(k, k)`` core between the bases, or its
            diagonal.
        num_factors: Directions a side (k) of its subspace; None: the suite's.
        is_warm: Whether coefficients begin as those of the other task that the first gradient is most
            aligned with.
        start: Where its tasks begin: the setting of that name; for what is trained in a subspace.
        training: What else it changes of the suite's section ``[training]``.
        keeping: What holds former tasks while another is learnt in the same weights, as
            `worker.bench.keepers` has it; empty: nothing.
        rates_of: The method whose best rate it takes; empty: its own.
        is_again: Whether it is learnt from another random start, with its batches in another order, than other methods
            with the same seed.
        peft: Its configuration in `peft`; None where `peft` has none.
    """

    name: str
    about: str
    scope: Scope
    rates: tuple[float, ...] = ()
    source: str = ""
    needs: str = ""
    within: Within = ""
    form: Form = "columns"
    num_factors: int | None = None
    is_warm: bool = False
    start: Start = "random"
    training: Mapping[str, Any] = field(default_factory=dict)
    keeping: Keeping = ""
    rates_of: str = ""
    is_again: bool = False
    peft: Peft | None = None

    def lesson(self) -> dict[str, Any]:
        """What of it decides outcomes, beside the learning rate and the suite's settings; what it leaves as it is not said."""
        named = {"name", "about", "scope", "rates", "source", "rates_of", "training"}
        told = asdict(self)
        return {
            each.name: told[each.name]
            for each in fields(self)
            if each.name not in named and told[each.name] != each.default
        }

    @property
    def is_shared(self) -> bool:
        """Whether a coordinator keeps what its tasks share."""
        return self.scope == "stream" and self.peft is None

    @property
    def has_subspace(self) -> bool:
        """Whether the sizes of a subspace decide its outcomes."""
        return bool(self.within) or self.is_shared


_LORA_CONFIG = Peft("LoraConfig", {"r": LORA_RANK, "lora_alpha": 2 * LORA_RANK})
_PISSA_CONFIG = Peft(
    "LoraConfig", {"r": LORA_RANK, "lora_alpha": LORA_RANK, "init_lora_weights": "pissa"}
)
_VERA_CONFIG = Peft("VeraConfig", {"r": 256, "d_initial": 0.1, "save_projection": False})
_VB_LORA_CONFIG = Peft(
    "VBLoRAConfig",
    {"r": 4, "num_vectors": 128, "vector_length": 32, "topk": 2, "save_only_topk_weights": True},
)
_OSF_CONFIG = Peft("OSFConfig", {}, has_layers=False)

_LORA = "LoRA, arXiv 2106.09685"
_LORA_RATES = (2e-3, 5e-3, 1e-2, 2e-2)
_STREAM_RATES = (2e-4, 5e-4, 1e-3, 2e-3, 5e-3)
_COEFFICIENT_RATES = (5e-3, 1e-2, 2e-2, 5e-2)
_RANDOM_RATES = (*_COEFFICIENT_RATES, 1e-1)
_BROAD_RATES = (1e-2, 2e-2, 5e-2, 1e-1)
_SHARE_RATES = (2e-2, 3e-2, 5e-2)


def first_step(form: Form, num_factors: int, pseudo_rank: int) -> float:
    """
    How far the first step of AdamW goes at a learning rate of one: every number that is trained moves by as much.

    Args:
        form: What is trained.
        num_factors: ``k``.
        pseudo_rank: ``p``, of columns.

    Returns:
        The Frobenius norm of the change of ``dW``, with orthonormal bases; of columns that of ``E_B``, beside an ``E_A`` of orthonormal columns.

    Examples:
        >>> [first_step(each, 32, 8) for each in ("columns", "core", "diagonal")]
        [16.0, 32.0, 5.656854249492381]
    """
    numbers = {"columns": num_factors * pseudo_rank, "core": num_factors**2}
    return math.sqrt(numbers.get(form, num_factors))


def _variant_of_share(name: str, about: str, **training: Any) -> Method:
    return Method(name, about, "stream", rates_of="share", start="gradient", training=training)


METHODS = {
    each.name: each
    for each in (
        Method("frozen", "the frozen model with a trained head: what learning is measured from", "task"),
        Method(
            "lora",
            "a rank-8 LoRA of the task's own",
            "task",
            _LORA_RATES,
            _LORA,
            peft=_LORA_CONFIG,
        ),
        Method(
            "lora-again",
            "the same from another random start: how far apart chance alone brings two equal ways to learn",
            "task",
            rates_of="lora",
            is_again=True,
            peft=_LORA_CONFIG,
        ),
        Method(
            "pissa",
            "the same, started from the largest singular vectors of the weights",
            "task",
            (5e-4, 1e-3, 2e-3, 5e-3),
            "PiSSA, arXiv 2404.02948",
            peft=_PISSA_CONFIG,
        ),
        Method(
            "vera",
            "two vectors a layer, between random matrices that all layers share",
            "task",
            (2e-2, 5e-2, 1e-1, 2e-1),
            "VeRA, arXiv 2310.11454",
            peft=_VERA_CONFIG,
        ),
        Method(
            "vb-lora",
            "factors mixed from a bank of vectors",
            "task",
            (2e-3, 5e-3, 1e-2, 2e-2, 5e-2),
            "VB-LoRA, arXiv 2405.15179",
            peft=_VB_LORA_CONFIG,
        ),
        Method(
            "full",
            "all weights of the model",
            "task",
            (1e-5, 3e-5, 1e-4, 3e-4),
        ),
        Method(
            "lora-init",
            "a rank-8 LoRA of the task's own, started from the principal factors of the other tasks' LoRAs",
            "task",
            _LORA_RATES,
            "EigenLoRAx INIT, arXiv 2502.04700",
            needs="lora",
            within="others",
            peft=_LORA_CONFIG,
        ),
        Method(
            "eigenlorax",
            "coefficients only, in the subspace of the other tasks' LoRAs",
            "task",
            _COEFFICIENT_RATES,
            "EigenLoRAx, arXiv 2502.04700",
            needs="lora",
            within="others",
        ),
        Method(
            "eigenlorax-gradient",
            "the same, its coefficients started from the first gradient",
            "task",
            _COEFFICIENT_RATES,
            needs="lora",
            within="others",
            start="gradient",
        ),
        Method(
            "eigenlorax-nearest",
            "as `eigenlorax`, its coefficients started from those of the task that the first gradient is most aligned with",
            "task",
            _COEFFICIENT_RATES,
            needs="lora",
            within="others",
            is_warm=True,
        ),
        Method(
            "eigenlorax-half",
            "as `eigenlorax-gradient`, with half as many columns a side",
            "task",
            _COEFFICIENT_RATES,
            needs="lora",
            within="others",
            start="gradient",
            training={"pseudo_rank": 4},
        ),
        Method(
            "eigenlorax-broad",
            "as `eigenlorax-gradient`, the same numbers in twice the directions: k = 64 of four columns each",
            "task",
            _BROAD_RATES,
            needs="lora",
            within="others",
            num_factors=64,
            start="gradient",
            training={"pseudo_rank": 4},
        ),
        Method(
            "eigenlorax-core",
            "a k x k matrix between the bases of the other tasks' LoRAs",
            "task",
            _COEFFICIENT_RATES,
            "LoRA-XS, arXiv 2405.17604, with its bases learnt from other tasks",
            needs="lora",
            within="others",
            form="core",
        ),
        Method(
            "eigenlorax-small-core",
            "the same of k = 22: hardly fewer numbers than the columns of `eigenlorax`",
            "task",
            _COEFFICIENT_RATES,
            "LoRA-XS, arXiv 2405.17604, with its bases learnt from other tasks",
            needs="lora",
            within="others",
            form="core",
            num_factors=22,
        ),
        Method(
            "eigenlorax-diagonal",
            "the diagonal alone of a matrix between the bases: k numbers a layer",
            "task",
            _COEFFICIENT_RATES,
            "SVFit, arXiv 2409.05926, with its bases learnt from other tasks",
            needs="lora",
            within="others",
            form="diagonal",
        ),
        Method(
            "random-subspace",
            "coefficients only, in a random subspace of the same size: whether sharing helps at all",
            "task",
            _RANDOM_RATES,
            within="random",
        ),
        Method(
            "random-gradient",
            "the same, its coefficients started from the first gradient",
            "task",
            _RANDOM_RATES,
            within="random",
            start="gradient",
        ),
        Method(
            "random-broad",
            "the same, the same numbers in twice the directions: k = 64 of four columns each",
            "task",
            _BROAD_RATES,
            within="random",
            num_factors=64,
            start="gradient",
            training={"pseudo_rank": 4},
        ),
        Method(
            "weight-subspace",
            "coefficients only, in the leading singular vectors of the frozen weights: a start without adapters",
            "task",
            _COEFFICIENT_RATES,
            within="weights",
        ),
        Method(
            "input-subspace",
            "coefficients only, in the leading directions of what layers are given and answer: a start without adapters",
            "task",
            _COEFFICIENT_RATES,
            "side A as in EVA, arXiv 2410.07170",
            within="inputs",
        ),
        Method(
            "share",
            "all tasks in one shared subspace, one after another, each started from its first gradient: what this project does",
            "stream",
            _SHARE_RATES,
            source="Share, arXiv 2602.06043",
            start="gradient",
        ),
        Method(
            "share-random",
            "the same, each task's coefficients and temporary factors started at random, as in the paper",
            "stream",
            _SHARE_RATES,
            source="Share, arXiv 2602.06043",
            start="random",
        ),
        _variant_of_share(
            "share-wide",
            "as `share`, with eight temporary factors a side, as many as a LoRA has",
            num_temporary=8,
        ),
        _variant_of_share(
            "share-sparing",
            "as `share`, with no more temporary factors in a layer than follow 0.9 of what its task could follow of the first gradient",
            reach=0.9,
        ),
        _variant_of_share(
            "share-refined",
            "as `share`, each task trained for one more pass in the version that has all of them",
            refine_epochs=1,
        ),
        _variant_of_share(
            "share-async",
            "as `share`, by four workers at once, none of which waits for another",
        ),
        _variant_of_share(
            "share-late",
            "as `share`, by four workers far behind: each task is learnt in the version of eight merges before its own, the first nine in the empty one",
        ),
        Method(
            "joint",
            "one rank-8 LoRA for all tasks at once, each with its head, after the last pass: needs all data in one place",
            "stream",
            _STREAM_RATES,
            _LORA,
            peft=_LORA_CONFIG,
        ),
        Method(
            "sequence",
            "one rank-8 LoRA, trained on one task after another, each with its head",
            "stream",
            _STREAM_RATES,
            _LORA,
            peft=_LORA_CONFIG,
        ),
        Method(
            "o-lora",
            "a rank-8 LoRA for each task, all added up, each task with its head; a penalty holds side A orthogonal to the former ones'",
            "stream",
            _STREAM_RATES,
            "O-LoRA, arXiv 2310.14152",
            keeping="orthogonal",
            peft=_LORA_CONFIG,
        ),
        Method(
            "ewc-lora",
            "as `sequence`, its product held by the diagonal Fisher information of former tasks: from 128 rows of each and their true labels, summed, around the last values, with a fixed weight",
            "stream",
            _STREAM_RATES,
            "EWC-LoRA, arXiv 2602.17559; EWC, arXiv 1612.00796",
            keeping="elastic",
            peft=_LORA_CONFIG,
        ),
        Method(
            "coso",
            "after CoSO: changes of rank 8 where the gradient is largest outside of the former tasks' gradients; simpler, in that a task has one such subspace, chosen at its start, not one every few steps",
            "stream",
            _STREAM_RATES,
            "CoSO, arXiv 2505.11816",
            keeping="projected",
            peft=_LORA_CONFIG,
        ),
        Method(
            "osf",
            "the weights themselves, one task after another: the larger half of each weight's singular directions is fixed, decomposed anew before each task",
            "stream",
            (1e-4, 3e-4, 1e-3),
            "OSF, arXiv 2504.07097",
            keeping="decomposed",
            peft=_OSF_CONFIG,
        ),
    )
}  # fmt: skip
"""Method by name, in the order of tables."""
