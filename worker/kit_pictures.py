"""
Tasks of pictures, as entry points for stream files; all but ``scanned_digits`` need `share-dist kit fetch images`.

Handwritten digits serve three tasks, each with a third of them, so that no picture is in two:
which digit it is, which way it was turned, whether two are the same. ``scanned_digits`` come
with scikit-learn. Emoji are drawn from a font, and their kinds within some groups are told apart.
"""

import json
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from share_dist.commands.kit import require_source
from share_dist.errors import StreamError
from worker.rows import Labelled, RawTask

DIGIT_PIXELS = 28
EMOJI_PIXELS = 64
FEWEST_OF_A_KIND = 12
"""Kinds of fewer emoji are left out."""

TURNS = ("upright", "left", "upside down", "right")

Pixels = npt.NDArray[np.uint8]


def handwritten_digits() -> RawTask:
    """Handwritten digits: which."""
    return RawTask([(Image.fromarray(pixels), digit) for pixels, digit in _digits(0)])


def turned_digits() -> RawTask:
    """Handwritten digits, turned by quarters one after another: which way; a turned 6 is a 9, and stays a riddle."""
    return RawTask(
        [
            (Image.fromarray(np.rot90(pixels, at % len(TURNS)).copy()), at % len(TURNS))
            for at, (pixels, _) in enumerate(_digits(1))
        ],
        label_names=TURNS,
    )


def digit_pairs() -> RawTask:
    """Two handwritten digits side by side, each in one pair only: whether they are the same digit."""
    by_digit: dict[int, list[Pixels]] = {}
    for pixels, digit in _digits(2):
        by_digit.setdefault(digit, []).append(pixels)
    rows: list[Labelled] = []
    for digit, held in by_digit.items():
        middle = len(held) // 2
        others = by_digit[(digit + 1) % len(by_digit)]
        rows += [
            (_beside(*pair), 1) for pair in zip(held[:middle:2], held[1:middle:2], strict=False)
        ]
        # odd places of one digit's second half with even ones of the next: nothing is used twice
        rows += [
            (_beside(*pair), 0)
            for pair in zip(held[middle::2], others[len(others) // 2 + 1 :: 2], strict=False)
        ]
    return RawTask(rows, label_names=("different", "same"))


def scanned_digits() -> RawTask:
    """Handwritten digits of another hand and scanner, 8 x 8 pixels of 17 greys: which."""
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels = np.round(found.images * (255 / 16)).astype(np.uint8)
    labels = found.target.tolist()
    return RawTask(
        [(Image.fromarray(each), label) for each, label in zip(pixels, labels, strict=True)]
    )


def emoji(groups: str) -> RawTask:
    """
    Emoji of some groups, such as ``"Animals & Nature, Food & Drink"``: of which kind, such as ``animal-bird``.

    Only those of one code point each are drawn: others are mostly their variants.
    """
    known = json.loads((require_source("emoji-groups") / "emoji.json").read_text(encoding="utf-8"))
    names, wanted = sorted({each["category"] for each in known}), groups.split(", ")
    unknown = [each for each in wanted if each not in names]
    if unknown:
        raise StreamError(
            f"there is no group of emoji {unknown[0]!r}: choose of {', '.join(names)}"
        )
    found = [
        (code, each["subcategory"])
        for each in known
        if each["category"] in wanted and (code := _only_code(each["unified"]))
    ]
    counts = Counter(kind for _, kind in found)
    font = ImageFont.truetype(require_source("emoji") / "emoji.ttf", EMOJI_PIXELS * 3 // 4)
    return RawTask(
        [(_drawn(code, font), kind) for code, kind in found if counts[kind] >= FEWEST_OF_A_KIND]
    )


def _only_code(unified: str) -> str:
    """An emoji's only code point; empty where it has several."""
    codes = [each for each in unified.split("-") if each != "FE0F"]
    return codes[0] if len(codes) == 1 else ""


def _drawn(code: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    picture, middle = Image.new("RGB", (EMOJI_PIXELS, EMOJI_PIXELS), "white"), EMOJI_PIXELS // 2
    ImageDraw.Draw(picture).text(
        (middle, middle), chr(int(code, 16)), font=font, embedded_color=True, anchor="mm"
    )
    return picture


def _digits(third: int) -> Sequence[tuple[Pixels, int]]:
    """Every third handwritten digit."""
    path = require_source("mnist") / "mnist_5k.csv.gz"
    table = np.loadtxt(path, dtype=np.uint8, delimiter=",")[third::3]
    pixels = table[:, :-1].reshape(-1, DIGIT_PIXELS, DIGIT_PIXELS)
    return list(zip(pixels, table[:, -1].tolist(), strict=True))


def _beside(left: Pixels, right: Pixels) -> Image.Image:
    """Two digits in a square of twice their width."""
    pixels = np.zeros((2 * DIGIT_PIXELS, 2 * DIGIT_PIXELS), np.uint8)
    top = DIGIT_PIXELS // 2
    pixels[top : top + DIGIT_PIXELS] = np.concatenate([left, right], axis=1)
    return Image.fromarray(pixels)
