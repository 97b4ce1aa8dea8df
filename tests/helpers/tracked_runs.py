"""What trackers have written, read back."""

import json
import struct
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, struct.Struct("<IHB")
"""Of an offline run of Weights & Biases: a log of records in blocks (LevelDB's format), behind seven bytes. A record
that is split has pieces of the kinds first, middle and last."""
WHOLE, FIRST, LAST = 1, 2, 4


def tensorboard_values(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) by name, in the order in which TensorBoard has them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    names = events.Tags()["scalars"]
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in names}


def wandb_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of an offline run's history, in the order of the file."""
    rows = [record.history for record in wandb_records(file) if record.WhichOneof("record_type") == "history"]
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in history.item}
        for history in rows
    ]


def wandb_records(file: Path) -> list[Any]:
    """The protobuf records of an offline run."""
    from wandb.proto.wandb_internal_pb2 import Record

    records, pending = [], b""
    content, place = file.read_bytes(), 7
    while place < len(content):
        if (left := BLOCK - place % BLOCK) < HEADER.size:
            place += left
            continue
        _, length, kind = HEADER.unpack_from(content, place)
        piece = content[place + HEADER.size : place + HEADER.size + length]
        place += HEADER.size + length
        pending = piece if kind in (WHOLE, FIRST) else pending + piece
        if kind in (WHOLE, LAST):
            records.append(Record.FromString(pending))
    return records
