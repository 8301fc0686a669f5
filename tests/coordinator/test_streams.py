"""The chunks of a push are kept beside the receiving of others: all of them, in order, and soon."""

import asyncio
from threading import Event

from coordinator import streams
from coordinator.uploads import Piece


class Upload:
    """Remembers what was to be kept; waits each time until it may go on."""

    def __init__(self):
        self.kept = []
        self.may_go_on = Event()
        self.may_go_on.set()
        self.has_kept = Event()

    def keep(self, pieces):
        assert self.may_go_on.wait(60)
        self.kept += [piece.place for piece in pieces]
        self.has_kept.set()


def piece(place):
    return Piece(place, place, b"x", is_sure=True)


def test_every_chunk_is_kept_in_order():
    """Also those that are fewer than are written at once."""

    async def push(num_chunks):
        upload = Upload()
        keeping = streams._Keeping(upload)
        for place in range(num_chunks):
            await keeping.add(piece(place))
        await keeping.finish()
        return upload.kept

    for num_chunks in (0, 1, 7, 8, 9, 40):
        assert asyncio.run(push(num_chunks)) == list(range(num_chunks))


def test_a_chunk_does_not_wait_for_company_that_never_comes():
    """What a slow peer has sent is kept before its next chunk comes."""

    async def push():
        upload = Upload()
        keeping = streams._Keeping(upload)
        await keeping.add(piece(0))
        await asyncio.to_thread(upload.has_kept.wait, 60)
        kept = list(upload.kept)
        await keeping.finish()
        return kept

    assert asyncio.run(push()) == [0]


def test_a_slow_disk_holds_the_sender_up():
    """Chunks do not gather in memory beyond those that may wait."""

    async def push():
        upload = Upload()
        upload.may_go_on.clear()
        keeping, added = streams._Keeping(upload), 0

        async def send():
            nonlocal added
            for place in range(100):
                await keeping.add(piece(place))
                added += 1

        sending = asyncio.ensure_future(send())
        for _ in range(1000):
            await asyncio.sleep(0)
        held = added
        upload.may_go_on.set()
        await sending
        await keeping.finish()
        return held, upload.kept

    held, kept = asyncio.run(push())
    assert held < 3 * streams._PIECES_AT_ONCE
    assert kept == list(range(100))
