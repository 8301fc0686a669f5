import pytest

from share_dist.errors import ConfigError, StreamError
from worker.stream import DatasetSource, EntryPointSource, TrainingSettings, read_stream

GOOD = """
[model]
path = "model"
targets = ["query", "value"]
[[task]]
id = "movies"
type = "text-classification"
source = { entry_point = "worker.kit_tasks:movies" }
[[task]]
id = "reviews"
type = "text-classification"
source = { dataset = "data/reviews", input_column = "review" }
max_train = 80
"""


def written(tmp_path, text):
    path = tmp_path / "north.toml"
    path.write_text(text)
    return path


def test_reads_a_stream(tmp_path):
    """A stream file gives its tasks in order, defaults filled in, its name as worker id."""
    stream = read_stream(written(tmp_path, GOOD))
    assert stream.worker_id == "north"
    assert [task.id for task in stream.tasks] == ["movies", "reviews"]
    assert isinstance(stream.tasks[0].source, EntryPointSource)
    assert isinstance(stream.tasks[1].source, DatasetSource)
    assert (stream.tasks[0].max_train, stream.tasks[1].max_train) == (1000, 80)
    assert stream.folder == tmp_path
    assert not stream.training.share_label_names


def test_what_is_set_stands_instead_of_what_the_file_says(tmp_path):
    """Of several changes of a key the last counts; all else, and the file, stays."""
    path = written(tmp_path, GOOD + "[training]\nepochs = 7\nseed = 4\n")
    changes = [
        "training.epochs=1",
        "training.epochs = 2",
        "training.start=random",
        "model.layers=[0, 2]",
    ]
    stream = read_stream(path, changes)
    plain = read_stream(path)
    assert (stream.training.epochs, stream.training.seed) == (2, 4)
    assert (stream.training.start, stream.model.layers) == ("random", [0, 2])
    assert stream.model.targets == plain.model.targets
    assert (plain.training.epochs, plain.training.start, plain.model.layers) == (
        7,
        "gradient",
        None,
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ("training.epochs", ConfigError, r"is no section\.key=value: write for example --set training\."),
        ("epochs=3", ConfigError, r"is no section\.key=value"),
        (".epochs=3", ConfigError, r"is no section\.key=value"),
        ("=3", ConfigError, r"is no section\.key=value"),
        ("task.id=poems", ConfigError, r"what can be set is in \[training\] and \[model\]"),
        ("training.epochz=3", StreamError, r"training\.epochz: unknown key; did you mean 'epochs'"),
        ("training.epochs=many", StreamError, r"training\.epochs: .*integer, got 'many'"),
        ("training.epochs.x=3", StreamError, r"training\.epochs: .*integer"),
        ("training.learning_rate=nan", StreamError, r"training\.learning_rate: "),
        ("training.reach=0.5", StreamError, 'reach needs start = "gradient"'),
    ],
)  # fmt: skip
def test_a_change_that_cannot_be_made_says_why(tmp_path, change, error, message):
    """The change is shown, or the key, with what it may be."""
    path = written(tmp_path, '[training]\nstart = "random"\n' + GOOD)
    with pytest.raises(error, match=message):
        read_stream(path, [change])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("targets", "target", r"model\.target: unknown key; did you mean 'targets'\?"),
        ("max_train", "max_trian", r"task\.1\.max_trian: unknown key; did you mean 'max_train'\?"),
        ("input_column", "inputs_column", r"task\.1\.source\.inputs_column: .*'input_column'\?"),
        ("max_train = 80", "max_train = 'many'", r"task\.1\.max_train: .*integer, got 'many'"),
        ("max_train = 80", "max_train = 1", r"greater than or equal to 8, got 1"),
        ("max_train = 80", "zzzzzz = 80", r"task\.1\.zzzzzz: unknown key; remove it"),
        ('id = "movies"', "", r"task\.0\.id: is missing"),
        ('"text-classification"', '"poetry"', r"task\.0\.type: .*got 'poetry'"),
        ("worker.kit_tasks:movies", "worker.kit_tasks.movies", r"task\.0\.source\.entry_point: "),
        ('"reviews"', '"movies"', r"task 'movies' is there 2 times"),
        ('path = "model"', "", r"needs one of path and name"),
        ('path = "model"', 'path = "model"\nname = "bert"', r"needs one of path and name"),
        (
            "[model]",
            '[training]\nstart = "random"\nreach = 0.5\n[model]',
            r'training: reach needs start = "gradient"',
        ),
        (
            'type = "text-classification"\nsource = { dataset = "data/reviews",',
            'type = "causal-lm"\nsource = { pair_column = "reply", dataset = "data/reviews",',
            r"task\.1: pair_column is for text-classification",
        ),
        (
            "max_train = 80",
            'metric = "exact_match"',
            r'task\.1: metric = "exact_match" is for causal-lm$',
        ),
        (
            'type = "text-classification"\nsource = { dataset = "data/reviews",',
            'metric = "matthews"\ntype = "text-regression"\nsource = { dataset = "data/reviews",',
            r'task\.1: metric = "matthews" is for text-classification and image-classification$',
        ),
        ("[model]", "[model", r"is no TOML"),
    ],
)
def test_says_what_is_wrong(tmp_path, old, new, message):
    """A mistake is answered with the place, what was read, and the nearest known key."""
    path = written(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(StreamError, match=message) as caught:
        read_stream(path)
    assert caught.value.path == str(path)
    assert str(path) in str(caught.value)


def test_says_that_there_is_no_file(tmp_path):
    """A path without a file is named."""
    with pytest.raises(StreamError, match=r"no-such\.toml cannot be read"):
        read_stream(tmp_path / "no-such.toml")


def test_a_lesson_says_what_differs_from_the_first_release():
    """A default that has changed since is said, and what was the default then is not: that lesson keeps its name."""
    now, then = TrainingSettings(), TrainingSettings(start="random")
    assert now.lesson()["start"] == "gradient"
    assert now.lesson() == {**then.lesson(), "start": "gradient"}


def test_one_model_takes_one_kind_of_input(tmp_path):
    """Texts and images in one stream are refused."""
    head, _, tail = GOOD.rpartition("text-classification")
    with pytest.raises(StreamError, match=r"images \(reviews\) and texts"):
        read_stream(written(tmp_path, f"{head}image-classification{tail}"))


def test_a_stream_without_tasks_is_refused(tmp_path):
    """At least one task is needed."""
    with pytest.raises(StreamError, match="task: "):
        read_stream(written(tmp_path, GOOD.partition("[[task]]")[0]))
