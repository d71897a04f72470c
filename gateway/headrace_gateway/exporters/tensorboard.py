"""A TensorBoard event file, written by the package `tensorboard` without TensorFlow and without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from .series import Point
from .sink import SinkEntry, opened_at


class TensorBoard:
    """One event file a job; a measured entry is one event, there whole or not at all. See `Sink`."""

    def __init__(self, folder: Path, size: int, job: Mapping[str, Any]) -> None:
        created = int(job["created_at"])
        self._file = opened_at(folder / f"events.out.tfevents.{created}.headrace", size)
        self._records = RecordWriter(self._file)
        if size == 0:
            self._records.write(Event(wall_time=created, file_version="brain.Event:2").SerializeToString())

    def write(self, entry: SinkEntry, point: Point) -> None:
        if point.values:
            values = [Summary.Value(tag=name, simple_value=value) for name, value in point.values.items()]
            event = Event(wall_time=point.time, step=point.step, summary=Summary(value=values))
            self._records.write(event.SerializeToString())

    def flush(self) -> int:
        self._records.flush()
        return self._file.tell()

    def close(self) -> None:
        self._records.close()
