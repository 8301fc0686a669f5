"""
Task streams: the file that says on which model a worker learns which tasks, in which order.

```toml
worker_id = "north"                     # default: the file's name

[model]
path = "kit:model"                      # a folder; "kit:" is the cache of `share-dist kit fetch`
targets = ["query", "value"]

[training]
epochs = 3

[[task]]
id = "movies"
type = "text-classification"
source = { entry_point = "worker.kit_tasks:movies" }

[[task]]
id = "reviews"
type = "text-classification"
source = { dataset = "data/reviews", input_column = "review" }
max_train = 800
```
"""

import difflib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PositiveFloat,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from share_dist.errors import StreamError
from share_dist.files import write_file
from worker.changes import changed

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TaskType: TypeAlias = Literal[
    "text-classification",
    "token-classification",
    "text-regression",
    "causal-lm",
    "image-classification",
]
Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]
Schedule: TypeAlias = Literal["constant", "linear", "cosine"]
Start: TypeAlias = Literal["random", "gradient"]
CausalMetric: TypeAlias = Literal["token_accuracy", "exact_match"]
ClassMetric: TypeAlias = Literal["accuracy", "matthews"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def lesson(self) -> dict[str, Any]:
        """
        What decides the result, as JSON.

        A key that came after the first release stands there only where it says another thing than
        what that release did, so that a lesson keeps its name from release to release.
        """
        said = {}
        for name, value in self.model_dump(mode="json", exclude=_HOW_ONLY).items():
            section = getattr(self, name)
            if name not in _LATER_KEYS or value != _first_default(type(self), name):
                said[name] = section.lesson() if isinstance(section, _Section) else value
        return said


def _first_default(section: type[BaseModel], name: str) -> Any:
    """What the first release that had a key did without it."""
    if name in _CHANGED_DEFAULTS:
        return _CHANGED_DEFAULTS[name]
    return section.model_fields[name].get_default(call_default_factory=True)


_HOW_ONLY = {"checkpoint_minutes", "report_to"}
_LATER_KEYS = {
    "schedule",
    "precision",
    "accumulate",
    "gradient_checkpointing",
    "compile",
    "patience",
    "rollbacks",
    "class_weights",
    "metric",
    "quantize",
    "start",
    "reach",
    "refine_epochs",
    "pair_column",
}
_CHANGED_DEFAULTS = {"start": "random"}
_TYPES_OF_METRICS: dict[str, tuple[TaskType, ...]] = {
    "exact_match": ("causal-lm",),
    "matthews": ("text-classification", "image-classification"),
}


class ModelSettings(_Section):
    """Which frozen model, and which of its layers are adapted; one of ``path`` and ``name``."""

    path: str = ""
    """A Hugging Face folder, relative to the stream file; ``kit:`` stands for the fetched kit."""
    name: str = ""
    """A model of the hub."""
    targets: list[str] | str = "all-linear"
    """Names of the adapted layers, a regular expression, or ``"all-linear"``."""
    layers: list[int] | None = None
    """Only these layer indices."""
    quantize: Literal["8bit", "4bit"] | None = None
    """Hold the frozen weights in so many bits, by `bitsandbytes`: needs an NVIDIA GPU; workers with and without share one subspace."""


class TrainingSettings(_Section):
    """How every task of the stream is learnt."""

    epochs: int = Field(3, ge=1)
    """Passes over the training rows."""
    batch_size: int = Field(32, ge=1)
    """Rows per step."""
    max_tokens: int = Field(32, ge=4)
    """Texts are cut after so many tokens."""
    learning_rate: float = Field(2e-2, gt=0)
    """Of coefficients and of temporary factors' coefficients."""
    temporary_learning_rate: float = Field(6e-3, gt=0)
    """Of the temporary factors themselves; about what suits a LoRA of the model."""
    head_learning_rate: float = Field(3e-3, gt=0)
    """Of the task's head, which starts as the head of the frozen model."""
    weight_decay: float = Field(0.01, ge=0)
    """Of the head; directions are not pulled to zero."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises; afterwards it follows `schedule`."""
    schedule: Schedule = "linear"
    """`"linear"` or `"cosine"`: the learning rate falls to zero; `"constant"`: it stays."""
    max_gradient_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""
    precision: Precision = "fp32"
    """Of the frozen model's products: `"bf16"` and `"fp16"` by autocast; what is learnt stays in fp32."""
    accumulate: int = Field(1, ge=1)
    """Parts in which the rows of a step go through the model; the gradient is that of all rows at once."""
    gradient_checkpointing: bool = False
    """Compute activations anew instead of keeping them: less memory, about a third more time."""
    compile: bool = False
    """Compile the model with `torch.compile`: minutes at the start, faster steps after; needs a C++ compiler."""
    patience: int | None = Field(None, ge=1)
    """End a task after so many epochs without a better score on the validation rows."""
    rollbacks: int = Field(3, ge=0)
    """How often a task goes back to its last good state, with a quarter of the learning rates, when a loss is not finite."""
    checkpoint_minutes: float = Field(5.0, ge=0)
    """Also in the middle of an epoch, the state of training is kept this often."""
    report_to: list[str] = []
    """Who is told of losses and scores: `"tensorboard"`, or another reporter of `transformers`."""
    validation_fraction: float = Field(0.15, ge=0.02, le=0.5)
    """Share of the training rows by which the best epoch and the head's penalty are chosen."""
    pseudo_rank: int = Field(8, ge=1)
    """``p``."""
    num_temporary: int = Field(4, ge=0)
    """``f``; 0: coefficients only, in a subspace that is not empty."""
    start: Start = "gradient"
    """Where a task begins: `"gradient"`: where its first steps lower the loss most, found from 256 of its rows; `"random"`."""
    reach: float | None = Field(None, gt=0, le=1)
    """With `start = "gradient"`: a layer gets only as many of the `num_temporary` as let the task follow this share of what a weight change of rank `p` could follow of the first gradient, none where the subspace suffices."""
    refine_epochs: int = Field(0, ge=0)
    """After the stream: so many more passes over each task's rows by its merged coefficients alone; pushed unless validation rows lose."""
    seed: int = 0
    """Of starts, batches and dropout."""
    share_label_names: bool = False
    """Whether the names of classes travel with a head."""

    @model_validator(mode="after")
    def _reach_follows_a_gradient(self) -> "TrainingSettings":
        if self.reach is not None and self.start != "gradient":
            raise PydanticCustomError("together", 'reach needs start = "gradient"')
        return self


class DatasetSource(_Section):
    """A ``datasets`` data set: a folder, a name on the hub, a builder such as ``csv``, or data in a package."""

    dataset: str
    """Folder (relative to the stream file), hub id or builder name."""
    package: str = ""
    """Take ``dataset`` as a folder inside this installed package, which is not imported."""
    config: str | None = None
    """Name of the data set's configuration."""
    data_files: dict[str, str] | None = None
    """For a builder: split -> file, relative to the stream file."""
    train_split: str = "train"
    """Rows to train on."""
    test_split: str = "test"
    """Rows to test on; where the data set has no such split, they are drawn from the training split."""
    input_column: str = "text"
    """Column of the inputs."""
    pair_column: str = ""
    """Column of a second text, which the model reads after the first and a separator: two texts are classified, or rated, together."""
    label_column: str = "label"
    """Column of the labels."""


class EntryPointSource(_Section):
    """A Python function that returns a :class:`worker.rows.RawTask`."""

    entry_point: str = Field(pattern=r"^[\w.]+:\w+$")
    """``module:function``."""
    arguments: dict[str, str | int | float | bool] = {}
    """Keyword arguments of the function."""


def _kind_of_source(source: Any) -> str:
    keys = source if isinstance(source, dict) else vars(source)
    return "entry_point" if "entry_point" in keys else "dataset"


class Task(_Section):
    """One learning problem of a stream."""

    id: str = Field(min_length=1)
    """Names the task at the coordinator; the same id again is an update of the same task."""
    type: TaskType
    """`"text-classification"`, `"token-classification"`, `"text-regression"`, `"causal-lm"` or `"image-classification"`; a stream has texts or images."""
    source: Annotated[
        Annotated[DatasetSource, Tag("dataset")] | Annotated[EntryPointSource, Tag("entry_point")],
        Discriminator(_kind_of_source),
    ]
    """Where its rows come from: a data set, or a Python function."""
    max_train: int = Field(1000, ge=8)
    """Most training rows."""
    max_test: int = Field(1000, ge=1)
    """Most test rows."""
    seed: int = 0
    """Decides which rows are drawn."""
    class_weights: Literal["balanced"] | list[PositiveFloat] | None = None
    """Weights of the classes, in their order, in the loss and in choosing the epoch; `"balanced"`: the rarer, the heavier."""
    metric: CausalMetric | Literal["matthews"] = "token_accuracy"
    """By which score the task is compared and its epoch is chosen: of `"causal-lm"` also `"exact_match"`, which suits short answers, of which half is nothing; of classes of texts and images, which are compared by accuracy, also `"matthews"`, the correlation of Matthews."""

    @model_validator(mode="after")
    def _metric_is_of_its_type(self) -> "Task":
        types = _TYPES_OF_METRICS.get(self.metric, (self.type,))
        if self.type not in types:
            said = {"metric": self.metric, "types": " and ".join(types)}
            raise PydanticCustomError("together", 'metric = "{metric}" is for {types}', said)
        return self

    @model_validator(mode="after")
    def _pairs_are_of_texts(self) -> "Task":
        is_pair = isinstance(self.source, DatasetSource) and self.source.pair_column
        if is_pair and self.type not in {"text-classification", "text-regression"}:
            raise PydanticCustomError(
                "together", "pair_column is for text-classification and text-regression"
            )
        return self


class _StreamFile(_Section):
    worker_id: str = ""
    model: ModelSettings
    training: TrainingSettings = Field(default_factory=lambda: TrainingSettings.model_validate({}))
    task: list[Task] = Field(min_length=1)


@dataclass(frozen=True)
class TaskStream:
    """
    The order in which a worker meets its tasks, and all that is needed to learn them.

    Args:
        path: The file it was read from; paths inside are relative to its folder.
        worker_id: Who learns it.
        model: The frozen model.
        training: How tasks are learnt.
        tasks: At least one; all of texts or all of images, because one model takes one kind of input.
    """

    path: Path
    worker_id: str
    model: ModelSettings
    training: TrainingSettings
    tasks: tuple[Task, ...]

    @property
    def folder(self) -> Path:
        """What relative paths are relative to."""
        return self.path.parent

    @property
    def task_types(self) -> tuple[TaskType, ...]:
        """The types of its tasks, in the order of their first ones."""
        return tuple(dict.fromkeys(task.type for task in self.tasks))


def read_stream(path: str | Path, changes: Sequence[str] = ()) -> TaskStream:
    """
    Read a stream file.

    Args:
        path: Where it lies.
        changes: ``section.key=value`` of its sections ``[model]`` and ``[training]``, which stand instead of what the file says.

    Raises:
        ConfigError: A change has another form, or is of another section.
        StreamError: There is no such file, it is no TOML, a key is unknown (the
            nearest known one is named) or a value cannot be used.
    """
    path = Path(path)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StreamError(
            f"{path} cannot be read ({error.strerror}): give the path of a stream file",
            path=str(path),
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StreamError(f"{path} is no TOML: {error}", path=str(path)) from error
    return parse_stream(path, changed(document, changes, ("training", "model")))


def parse_stream(path: Path, document: Mapping[str, Any]) -> TaskStream:
    """
    Make a stream of what a file holds.

    Args:
        path: The file, for messages; paths inside are relative to its folder.
        document: What it holds.

    Raises:
        StreamError: A key is unknown, or a value cannot be used.
    """
    try:
        file = _StreamFile.model_validate(document)
    except ValidationError as error:
        problems = "\n".join(f"  {_say(problem)}" for problem in error.errors())
        raise StreamError(f"{path} cannot be used:\n{problems}", path=str(path)) from error
    _require_one_model(path, file.model)
    _require_distinct(path, file.task)
    return TaskStream(
        path, file.worker_id or path.stem, file.model, file.training, tuple(file.task)
    )


def write_stream(stream: TaskStream, path: Path) -> None:
    """
    Write a stream file that says the same from another folder.

    Args:
        stream: It; relative paths inside become absolute.
        path: Where.
    """
    import tomli_w

    model = stream.model.model_dump(mode="json", exclude_none=True)
    if model["path"] and not model["path"].startswith("kit:"):
        model["path"] = str((stream.folder / model["path"]).resolve())
    document = {
        "worker_id": stream.worker_id,
        "model": model,
        "training": stream.training.model_dump(mode="json", exclude_none=True),
        "task": [_placed(task, stream.folder) for task in stream.tasks],
    }
    write_file(path, tomli_w.dumps(document).encode())


def _placed(task: Task, folder: Path) -> dict[str, Any]:
    said = task.model_dump(mode="json", exclude_none=True)
    source = said["source"]
    if isinstance(task.source, EntryPointSource) or task.source.package:
        return said
    if (folder / task.source.dataset).exists():
        source["dataset"] = str((folder / task.source.dataset).resolve())
    for split, file in (task.source.data_files or {}).items():
        source["data_files"][split] = str((folder / file).resolve())
    return said


def _require_one_model(path: Path, model: ModelSettings) -> None:
    if bool(model.path) == bool(model.name):
        raise StreamError(
            f"{path}: [model] needs one of path and name, got path={model.path!r} "
            f"and name={model.name!r}",
            path=str(path),
        )


def _require_distinct(path: Path, tasks: list[Task]) -> None:
    ids = [task.id for task in tasks]
    repeated = sorted({each for each in ids if ids.count(each) > 1})
    if repeated:
        raise StreamError(
            f"{path}: task {repeated[0]!r} is there {ids.count(repeated[0])} times: "
            "give each task its own id",
            path=str(path),
            task_id=repeated[0],
        )
    of_images = [task.id for task in tasks if task.type == "image-classification"]
    if 0 < len(of_images) < len(tasks):
        raise StreamError(
            f"{path}: one model cannot read images ({', '.join(of_images)}) and texts: "
            "make a stream of each",
            path=str(path),
        )


def _say(problem: ErrorDetails) -> str:
    """One validation problem as a sentence: where, what was read, and the nearest known key."""
    # a tag of the source union is pydantic's own word, not a key of the file
    where = [part for part in problem["loc"][:-1] if part not in {"dataset", "entry_point"}]
    place = ".".join(str(part) for part in (*where, problem["loc"][-1]))
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(problem["loc"][-1]), _KNOWN_KEYS, n=1)
        advice = f"did you mean {near[0]!r}?" if near else "remove it"
        return f"{place}: unknown key; {advice}"
    if problem["type"] == "missing":
        return f"{place}: is missing"
    if problem["type"] == "together":
        return f"{place}: {problem['msg']}"
    return f"{place}: {problem['msg']}, got {problem['input']!r}"


_KNOWN_KEYS = sorted(
    {
        key
        for section in (
            _StreamFile,
            ModelSettings,
            TrainingSettings,
            Task,
            DatasetSource,
            EntryPointSource,
        )
        for key in section.model_fields
    }
)
