"""
A world in which every field of a task stream holds something that would be known again.

Texts, labels, column names, extra columns, row ids, file names, folder names and
arguments all contain ``WORD``; every text also contains the same run of tokens,
whose ids are no other numbers.
"""

import base64
import hashlib
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.worker import toys
from worker.rows import RawTask

WORD = "quokka7f3a"
TOKEN_IDS = (30011, 27103, 19937, 31319, 23557)
LABELS = (f"{WORD}-label-no", f"{WORD}-label-yes")

_TOKENS = tuple(f"{WORD}tok{index}" for index in range(len(TOKEN_IDS)))
_VOCABULARY_SIZE = 32_000
_FORMATS = ("<h", ">h", "<i", ">i", "<q", ">q", "<e", ">e", "<f", ">f", "<d", ">d")


def texts(topic: str, count: int = 96) -> list[tuple[str, int]]:
    """Sentences that can be learnt, each with the canary word, the canary tokens and its own id."""
    rows = toys.sentences(topic, count, seed=3)
    return [
        (f"{text} {WORD} {' '.join(_TOKENS)} {WORD}row{index}", int(label[-1]))
        for index, (text, label) in enumerate(rows)
    ]


def from_entry_point(topic: str, note: str) -> RawTask:
    """An entry point whose argument, labels and rows are canaries."""
    assert WORD in note
    return RawTask([(text, LABELS[label]) for text, label in texts(topic)])


def make_model(folder: Path) -> Path:
    """A small BERT whose tokenizer gives the canary tokens the canary ids."""
    words = {"[PAD]", "[UNK]", *toys.FILLER}
    words |= {word for pair in toys.WORDS.values() for part in pair for word in part}
    ids = iter(index for index in range(_VOCABULARY_SIZE) if index not in TOKEN_IDS)
    vocabulary = {
        word: next(ids) for word in ("[PAD]", "[UNK]", *sorted(words - {"[PAD]", "[UNK]"}))
    }
    vocabulary |= dict(zip(_TOKENS, TOKEN_IDS, strict=True))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=_VOCABULARY_SIZE,
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


def make_dataset(folder: Path) -> Path:
    """A data set on disk with canaries in its name, its columns, its class names and its rows."""
    import datasets

    rows = texts("food")
    table = datasets.Dataset.from_dict(
        {
            f"{WORD}-text": [text for text, _ in rows],
            f"{WORD}-class": [label for _, label in rows],
            "row_id": [f"{WORD}-id-{index}" for index in range(len(rows))],
            "author": [
                f"{WORD}-author-{random.Random(index).random()}" for index in range(len(rows))
            ],
        }
    ).cast_column(f"{WORD}-class", datasets.ClassLabel(names=list(LABELS)))
    path = folder / f"{WORD}-reviews"
    datasets.DatasetDict({"train": table}).save_to_disk(path)
    return path


def make_stream(
    folder: Path, worker_id: str, task_ids: tuple[str, ...], training: str = ""
) -> Path:
    """A stream file full of canaries; its first task is from an entry point, the next from disk."""
    folder = folder / f"{WORD}-folder"
    folder.mkdir(parents=True)
    make_model(folder / f"{WORD}-model")
    dataset = make_dataset(folder)
    sources = (
        (
            'entry_point = "tests.integration.canaries:from_entry_point", '
            f'arguments = {{ topic = "mood", note = "{WORD}-argument" }}'
        ),
        f'dataset = "{dataset.name}", input_column = "{WORD}-text", label_column = "{WORD}-class"',
    )
    tasks = "".join(
        f"""
[[task]]
id = "{task_id}"
type = "text-classification"
source = {{ {source} }}
max_train = 64
max_test = 24
"""
        for task_id, source in zip(task_ids, sources, strict=False)
    )
    path = folder / f"{WORD}-stream.toml"
    path.write_text(
        f"""
worker_id = "{worker_id}"
[model]
path = "{WORD}-model"
targets = ["query", "value"]
[training]
epochs = 1
batch_size = 16
pseudo_rank = 4
num_temporary = 2
validation_fraction = 0.2
{training}
{tasks}"""
    )
    return path


@dataclass(frozen=True)
class Canary:
    """Bytes that only a sample can have brought, and how they were written."""

    what: str
    data: bytes


def all_canaries() -> list[Canary]:
    """The canary word, the canary tokens and every text, in each form in which they might travel."""
    found = [Canary(f"the word, {name}", data) for name, data in _written(WORD)]
    found += [Canary(f"token ids, {name}", data) for name, data in _numbers(TOKEN_IDS)]
    for topic in ("mood", "food"):
        for text, _ in texts(topic):
            found += [Canary(f"digest of {text!r}", data) for data in _digests(text)]
    return found


def _written(text: str) -> Iterator[tuple[str, bytes]]:
    for encoding in ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
        yield encoding, text.encode(encoding)
    yield "reversed", text[::-1].encode()
    yield "hexadecimal", text.encode().hex().encode()
    yield "upper case", text.upper().encode()
    for shift in range(3):
        # what base64 makes of the text wherever in a longer text it stands
        coded = base64.b64encode(b"\0" * shift + text.encode())
        yield f"base64, shift {shift}", coded[4 if shift else 0 : len(coded) // 4 * 4 - 4]


def _numbers(values: tuple[int, ...]) -> Iterator[tuple[str, bytes]]:
    for form in _FORMATS:
        yield f"struct {form}", b"".join(struct.pack(form, value) for value in values)
    yield "bfloat16", torch.tensor(values).to(torch.bfloat16).view(torch.uint8).numpy().tobytes()
    yield "varint", b"".join(varint(value) for value in values)
    yield "zigzag varint", b"".join(varint(2 * value) for value in values)
    for separator in (",", ", ", " ", "\n"):
        yield f"decimal, {separator!r}", separator.join(map(str, values)).encode()


def varint(value: int) -> bytes:
    """Write a number as protobuf does."""
    pieces = bytearray()
    while value > 0x7F:
        pieces.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*pieces, value])


def _digests(text: str) -> Iterator[bytes]:
    for name in ("md5", "sha1", "sha256"):
        digest = hashlib.new(name, text.encode()).digest()
        yield digest
        yield digest.hex().encode()
