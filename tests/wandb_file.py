"""What W&B has written for a run, read back from its own file: a log of records in blocks, as LevelDB has them."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32768


def histories(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a `.wandb` file."""
    from wandb.proto.wandb_internal_pb2 import Record

    for data in records(path.read_bytes()):
        record = Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            yield {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}


def groups(path: Path) -> set[tuple[str, str]]:
    """The id and the group of the run that a `.wandb` file tells of."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = map(Record.FromString, records(path.read_bytes()))
    return {(record.run.run_id, record.run.run_group) for record in found if record.WhichOneof("record_type") == "run"}


def records(data: bytes) -> Iterator[bytes]:
    """Each record: of a fragment, 4 bytes of checksum, 2 of length, 1 of type (1 and 4 end a record)."""
    at, record = 7, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield record
            record = b""
