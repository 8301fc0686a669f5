"""Small things of the real kinds: a BERT made from a config, streams, rows that can be learnt."""

import random
from pathlib import Path

import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from share_dist.errors import StreamError
from worker.rows import RawTask

WORDS = {
    "mood": (("sad", "bad", "poor"), ("glad", "good", "great")),
    "food": (("soup", "stew", "broth"), ("cake", "pie", "tart")),
    "motion": (("sits", "rests", "lies"), ("runs", "jumps", "flies")),
}
FILLER = ("the", "a", "one", "this", "that", "thing", "day", "was", "is", "very")


def make_model(folder: Path) -> Path:
    """A BERT of two layers with its tokenizer, as a Hugging Face folder."""
    words = sorted({*FILLER, *(word for pair in WORDS.values() for part in pair for word in part)})
    vocabulary = {word: index for index, word in enumerate(("[PAD]", "[UNK]", *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertModel(config).save_pretrained(folder)
    return folder


def sentences(topic: str, count: int, seed: int) -> list[tuple[str, str]]:
    """Distinct sentences whose class is which kind of words has the majority."""
    order = random.Random(seed)
    rows = {}
    while len(rows) < count:
        label = order.randrange(2)
        words = order.choices(WORDS[topic][label], k=2) + order.choices(
            WORDS[topic][1 - label], k=1
        )
        words += order.choices(FILLER, k=order.randint(2, 9))
        order.shuffle(words)
        rows[" ".join(words)] = f"{topic}-{label}"
    return list(rows.items())


def topic(name: str, count: int = 160) -> RawTask:
    """An entry point."""
    return RawTask(sentences(name, count, seed=1))


def broken() -> RawTask:
    """An entry point that fails."""
    raise OSError("the disk is gone")


def not_a_task() -> list[str]:
    """An entry point that returns something else."""
    return ["rows"]


def refused() -> RawTask:
    """An entry point that says what to do."""
    raise StreamError("run `share-dist kit fetch`")


def stream_text(model: Path, worker_id: str, topics: tuple[str, ...], training: str = "") -> str:
    """A stream file."""
    tasks = "".join(
        f"""
[[task]]
id = "{name}"
type = "text-classification"
source = {{ entry_point = "tests.worker.toys:topic", arguments = {{ name = "{name}" }} }}
max_train = 96
max_test = 48
"""
        for name in topics
    )
    return f"""
worker_id = "{worker_id}"
[model]
path = "{model}"
targets = ["query", "value"]
[training]
epochs = 2
batch_size = 16
num_temporary = 2
validation_fraction = 0.2
{training}
{tasks}"""


def make_image_model(folder: Path) -> Path:
    """A vision transformer of two layers with its image processor."""
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=8,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.ViTModel(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def tagged(count: int = 160) -> RawTask:
    """Words in small sentences: filler, of a sad mood or of a glad one."""
    sad, glad = WORDS["mood"]
    rows = [
        (
            text.split(),
            ["sad" if x in sad else "glad" if x in glad else "filler" for x in text.split()],
        )
        for text, _ in sentences("mood", count, seed=3)
    ]
    return RawTask(rows)


def rated(count: int = 160) -> RawTask:
    """Small sentences, and how many of their words are of a sad mood less how many of a glad one."""
    sad, glad = WORDS["mood"]
    rows = [
        (text, float(sum((x in glad) - (x in sad) for x in text.split())))
        for text, _ in sentences("mood", count, seed=4)
    ]
    return RawTask(rows)


def completed(count: int = 160, seed: int = 5) -> RawTask:
    """Two words of one kind, and the third of the kind."""
    kinds = [kind for pair in WORDS.values() for kind in pair]
    order = random.Random(seed)
    rows = {}
    while len(rows) < min(count, 90):
        first, second, third = order.sample(order.choice(kinds), 3)
        prompt = " ".join([*order.choices(FILLER, k=2), first, second])
        rows[prompt] = third
    return RawTask(list(rows.items()))


def make_causal_model(folder: Path) -> Path:
    """A Llama of two layers with its tokenizer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(make_model(folder))
    tokenizer.add_special_tokens({"eos_token": "[END]"})
    tokenizer.save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def mixed_stream_text(model: Path, worker_id: str, tasks: dict[str, str], training: str) -> str:
    """A stream of tasks of several types: entry point -> type."""
    said = "".join(
        f"""
[[task]]
id = "{name}"
type = "{kind}"
source = {{ entry_point = "tests.worker.toys:{name}" }}
max_train = 96
max_test = 40
"""
        for name, kind in tasks.items()
    )
    return f"""
worker_id = "{worker_id}"
[model]
path = "{model}"
targets = "all-linear"
[training]
batch_size = 16
num_temporary = 2
validation_fraction = 0.2
{training}
{said}"""


def colours(count: int = 120, seed: int = 1) -> RawTask:
    """Images in which one colour is the brightest, under much noise."""
    order = random.Random(seed)
    rows = []
    for _ in range(count):
        label = order.randrange(3)
        noise = bytes(
            min(255, order.randrange(200) + 40 * (at % 3 == label)) for at in range(12 * 12 * 3)
        )
        rows.append((Image.frombytes("RGB", (12, 12), noise), label))
    return RawTask(rows, label_names=("red", "green", "blue"))


def image_stream_text(model: Path) -> str:
    """A stream of one image task."""
    return f"""
[model]
path = "{model}"
[training]
epochs = 2
batch_size = 16
num_temporary = 2
share_label_names = true
[[task]]
id = "colours"
type = "image-classification"
source = {{ entry_point = "tests.worker.toys:colours" }}
"""
