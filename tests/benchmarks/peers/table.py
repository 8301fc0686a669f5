"""Every program that is measured."""

from tests.benchmarks.peers.base import Peer
from tests.benchmarks.peers.chorus_fl import Chorus
from tests.benchmarks.peers.lora_share import LoraShare
from tests.benchmarks.peers.ours import Ours, OursFromBytes
from tests.benchmarks.peers.peft_svd import PeftSvd
from tests.benchmarks.peers.vlora_dev import Vlora

OURS = Ours()
FROM_BYTES = OursFromBytes()
OTHERS: tuple[Peer, ...] = (
    Vlora("absorb"),
    Vlora("absorb_incremental"),
    LoraShare(),
    Chorus(),
    PeftSvd(),
)
