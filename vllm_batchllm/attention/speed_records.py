# SPDX-License-Identifier: Apache-2.0
"""What shared attention was measured to bring on a device, and whether that is enough to use it unasked.

Records are JSON files: those shipped in the package, and those that ``benchmarks/gpu/engine.py`` writes into the cache
folder. One that a user's own machine wrote counts before a shipped one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from vllm_batchllm.cache_folder import cache_folder
from vllm_batchllm.log import get_logger

logger = get_logger(__name__)

MIN_GAIN = 1.02
"""Throughput with, over without, that some degree and prefix must show."""

MIN_WITH_NOTHING_SHARED = 0.99
"""Throughput with, over without, that prompts which share nothing must keep."""


class RecordKey(NamedTuple):
    """What a measurement holds for."""

    device: str
    head_size: int
    kv_type: str
    vllm_minor: str

    def __str__(self) -> str:
        return (
            f"{self.device}, heads of {self.head_size}, {self.kv_type} KV, vLLM {self.vllm_minor}"
        )


@dataclass(frozen=True)
class SpeedRecord:
    """Throughput of an engine with shared attention over that without.

    gains: by prefix tokens and degree, as ``"2000x16"``. nothing_shared: the same where prompts share nothing. measured:
    the day, and the command.
    """

    device: str
    head_size: int
    kv_type: str
    vllm_minor: str
    gains: dict[str, float]
    nothing_shared: float
    measured: str

    @property
    def key(self) -> RecordKey:
        return RecordKey(self.device, self.head_size, self.kv_type, self.vllm_minor)

    @property
    def best(self) -> float:
        return max(self.gains.values(), default=0.0)

    @property
    def is_worth_it(self) -> bool:
        """Whether the record lets shared attention be used without being asked for."""
        return self.best >= MIN_GAIN and self.nothing_shared >= MIN_WITH_NOTHING_SHARED

    def __str__(self) -> str:
        return f"{self.best:.2f}x at best, {self.nothing_shared:.3f}x with nothing shared ({self.measured})"


def read_record(text: str, name: str) -> SpeedRecord | None:
    """A record from JSON; None, with a line in the log, if it is none."""
    try:
        data = json.loads(text)
        record = SpeedRecord(**data)
        assert all(
            isinstance(gain, float | int)
            for gain in (*record.gains.values(), record.nothing_shared)
        )
    except (ValueError, TypeError, AttributeError, AssertionError) as error:
        logger.warning(
            "Not a record of shared attention: %s (%s)", name, error or type(error).__name__
        )
        return None
    return record


def own_folder() -> Path:
    """Where the records of this machine are."""
    return cache_folder() / "attention"


def known_records(folder: Path | None = None) -> list[SpeedRecord]:
    """All records, the machine's own first."""
    own = sorted((folder or own_folder()).glob("*.json"))
    shipped = sorted(
        (f for f in resources.files("vllm_batchllm.attention").joinpath("records").iterdir() if f.name.endswith(".json")),
        key=lambda file: file.name,
    )  # fmt: skip
    found = [read_record(file.read_text(encoding="utf-8"), file.name) for file in (*own, *shipped)]
    return [record for record in found if record is not None]


def record_for(key: RecordKey, records: Iterable[SpeedRecord]) -> SpeedRecord | None:
    """The first record of this key."""
    return next((record for record in records if record.key == key), None)


def write_record(record: SpeedRecord, folder: Path | None = None) -> Path:
    """Keep a record on this machine; returns its file."""
    place = folder or own_folder()
    place.mkdir(parents=True, exist_ok=True)
    words = f"{record.device}-{record.head_size}-{record.kv_type}-{record.vllm_minor}"
    file = place / ("".join(c if c.isalnum() or c in ".-" else "_" for c in words) + ".json")
    file.write_text(json.dumps(asdict(record), indent=1), encoding="utf-8")
    return file
