"""Whatever a peer sends: a value or a ShareError, in little time and memory."""

import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.decoders import find_decoders

DECODERS = find_decoders()
EXAMPLES = 40
BYTES_PER_BYTE = 500
"""Python memory that a decoder may take for each byte of its input."""

every_decoder = pytest.mark.parametrize("decoder", DECODERS, ids=lambda each: each.name)


@st.composite
def inputs(draw, decoder):
    """A seed made wrong once or several times; now and then nothing but chance."""
    if draw(st.integers(0, 4)) == 0:
        return draw(st.binary(max_size=300))
    rng = random.Random(draw(st.integers(0, 2**64)))
    data = draw(st.sampled_from(decoder.seeds))
    for _ in range(draw(st.integers(1, 3))):
        data = decoder.mutate(data, rng)
    return data


@every_decoder
def test_odd_bytes_are_a_value_or_a_share_error(decoder):
    """Nothing but a ShareError comes out of a decoder, however odd the bytes."""

    @settings(max_examples=EXAMPLES, deadline=2000, database=None)
    @given(inputs(decoder))
    def attack(data):
        decoder.attack(data)

    attack()


def test_every_decoder_takes_something():
    """The attack reaches beyond each decoder's first check: some of its inputs are taken."""
    rng = random.Random(0)
    for decoder in DECODERS:
        candidates = [
            *decoder.seeds,
            *(decoder.mutate(rng.choice(decoder.seeds), rng) for _ in range(300)),
        ]
        assert any(decoder.attack(data) for data in candidates), decoder.name


def test_a_decoder_takes_no_more_memory_than_its_input_is_worth():
    """Python's own memory stays in proportion to the bytes that came."""
    rng = random.Random(1)
    for decoder in DECODERS:
        for data in [decoder.mutate(rng.choice(decoder.seeds), rng) for _ in range(20)]:
            tracemalloc.start()
            decoder.attack(data)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert peak < 2**17 + BYTES_PER_BYTE * len(data), (decoder.name, len(data))
