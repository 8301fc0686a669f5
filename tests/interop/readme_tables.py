"""The tables of the wire's specification: `python -m tests.interop.readme_tables` writes them."""

from typing import Any

from share_dist import errors
from share_dist.core.steps import NUM_PROBES, PROBE_TOLERANCE
from share_dist.errors import ShareError, TransportError
from share_dist.wire import checks, chunks, messages, options, records, rotations, tensors
from share_dist.wire.admin_messages import MAX_TOKEN_SUBSPACES
from tests.house.readme_tables import ROOT, first_sentence, table, with_tables

README = ROOT / "protos/README.md"


def error_classes() -> str:
    """Every class that crosses the wire, with its facts."""
    known = [kind for kind in vars(errors).values() if _crosses(kind)]
    rows = [
        (f"`{kind.__name__}`", f"`{kind.status}`", _facts(kind), first_sentence(kind.__doc__ or ""))
        for kind in known
    ]
    return table(["class", "status", "facts", "when"], rows)


def bounds() -> str:
    """Every bound of a message or a payload that a peer may not pass."""
    rows: list[tuple[str, str]] = [
        ("`update_id`, `task_id`, `worker_id`, `Token.principal`", _characters(1, checks.MAX_ID_CHARACTERS)),
        ("`UpdateHeader.fingerprint_digest`", _characters(0, checks.MAX_ID_CHARACTERS)),
        ("`subspace`", _characters(0, checks.MAX_NAME_CHARACTERS)),
        ("`base_digest`, `held_digest`, `after_digest`", "64 lower-case hex digits, or empty"),
        ("`prefix_sha256`, `held_chain`", "32 bytes, or empty"),
        ("`reason` of a request", _characters(0, checks.MAX_REASON_CHARACTERS)),
        ("`scores`", f"{messages.MAX_SCORES}, each name {_characters(0, checks.MAX_NAME_CHARACTERS)}, each value finite"),
        ("`HeadInfo.task_type`", _characters(0, checks.MAX_NAME_CHARACTERS)),
        ("`HeadInfo.label_names`", f"{_bytes(messages.MAX_LABEL_BYTES)} together, in UTF-8, each name counted with one byte more"),
        ("`Fingerprint.base_model`", _characters(1, checks.MAX_ID_CHARACTERS)),
        ("`Fingerprint.layers`", f"{messages.MAX_LAYERS:,}, each name {_characters(1, messages.MAX_LAYER_NAME_CHARACTERS)}"),
        ("`CreateTokenRequest.subspaces`", f"1 to {MAX_TOKEN_SUBSPACES}"),
        ("drifts in one event", f"{records.MAX_TOLD_DRIFTS}"),
        ("a chunk", f"1 byte to {_bytes(chunks.MAX_CHUNK_BYTES)}; {_bytes(chunks.CHUNK_BYTES)} are best"),
        ("chunks of a payload", f"one for every {_bytes(chunks.MIN_CHUNK_BYTES)} that it begins"),
        ("a payload", f"{_bytes(chunks.MAX_PAYLOAD_BYTES)}, or what the receiver is set to take"),
        ("tensors in a payload", f"{tensors.MAX_TENSORS:,}, of at most {tensors._MAX_DIMENSIONS} dimensions"),
        ("JSON header of a payload", _bytes(tensors.MAX_HEADER_BYTES)),
        ("steps in a payload", f"{rotations.MAX_STEPS:,}, each with {NUM_PROBES} probes, right to {PROBE_TOLERANCE:g}"),
        ("a single message", _bytes(options.MAX_MESSAGE_BYTES)),
    ]  # fmt: skip
    return table(["what", "at most"], rows)


def channel_options() -> str:
    """The options that both ends set."""
    client, server = dict(options.CHANNEL_OPTIONS), dict(options.SERVER_OPTIONS)
    shown = [name for name in (client | server) if name in client or "ping_interval" in name]
    return table(
        ["option", "client", "coordinator"],
        [(f"`{name}`", _number(client, name), _number(server, name)) for name in shown],
    )


TABLES = {"errors": error_classes, "bounds": bounds, "channel options": channel_options}


def _crosses(kind: Any) -> bool:
    if not isinstance(kind, type) or issubclass(kind, TransportError):
        return False
    return issubclass(kind, ShareError) and kind.status is not None


def _facts(kind: type[ShareError]) -> str:
    words = {int: "integer", float: "number", str: "text"}
    return ", ".join(f"`{name}` {words[type_]}" for name, type_ in kind.fields.items())


def _characters(fewest: int, most: int) -> str:
    return f"{fewest} to {most} characters" if fewest else f"{most} characters"


def _bytes(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count % size == 0:
            return f"{count // size} {unit}"
    return f"{count} bytes"


def _number(values: dict[str, int], name: str) -> str:
    return f"{values[name]:,}" if name in values else ""


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text(), TABLES))
