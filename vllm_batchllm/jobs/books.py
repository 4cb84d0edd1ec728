# SPDX-License-Identifier: Apache-2.0
"""What has been done of a job: for every line of the input where its answer stands in the journal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vllm_batchllm.errors import UsageError
from vllm_batchllm.input.scan import Input, digest_of_id
from vllm_batchllm.jobs.journal import Journal
from vllm_batchllm.log import get_logger
from vllm_batchllm.messages import clip
from vllm_batchllm.prefix.prefix_order import Ints

logger = get_logger(__name__)

NOWHERE = -1


@dataclass(slots=True)
class JobCounts:
    """Lines and tokens. total: lines of the input. completed, failed: those with an answer, and with an error.

    prompt_tokens, output_tokens: of answers written since the job was opened. resumed: lines found answered then.
    new_bytes_left: prompt text that is still to be computed.
    """

    total: int
    completed: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    resumed: int = 0
    new_bytes_left: int = 0

    @property
    def done(self) -> int:
        """Lines with an answer or an error."""
        return self.completed + self.failed


class Books:
    """Places of answers by line, and the counts.

    places, lengths: (num_lines,), bytes in the journal; NOWHERE for lines without an answer.
    """

    def __init__(self, source: Input, is_repeated: npt.NDArray[np.bool_]) -> None:
        self._source = source
        self.places = np.full(len(source), NOWHERE, dtype=np.int64)
        self.lengths = np.full(len(source), NOWHERE, dtype=np.int64)
        self.counts = JobCounts(len(source))
        self.errors: dict[str, int] = {}
        named = np.flatnonzero(~source.is_bad & ~is_repeated)
        by_name = np.lexsort((source.ids[named, 1], source.ids[named, 0]))
        self._names = source.ids[named[by_name]]
        self._lines = named[by_name]

    def remaining(self) -> Ints:
        """Lines without an answer, ascending."""
        return np.flatnonzero(self.places == NOWHERE)

    def enter(self, index: int, place: int, length: int, error_code: str | None) -> None:
        """The answer of the line at ``index`` stands at ``place``; ``error_code`` where it is an error."""
        self.places[index], self.lengths[index] = place, length
        if error_code is None:
            self.counts.completed += 1
        else:
            self.counts.failed += 1
            self.errors[error_code] = self.errors.get(error_code, 0) + 1

    def load(self, journal: Journal, *, retry_errors: bool = False) -> None:
        """Enter what a journal holds; take out of it what cannot be read or stands there twice.

        Args:
            retry_errors: take errors out, too, so that their lines are computed again.

        Raises:
            UsageError: it holds answers to lines that are not in the input.
        """
        unwanted: set[int] = set()
        for place, raw, record in journal.records():
            index = self._index_of(record)
            if index is None:
                raise UsageError(
                    f"{journal.path} holds an answer to {clip(name_of(record))}, which is not in "
                    f"{self._source.path}: it belongs to another job. Name another output, or "
                    "begin anew with --restart"
                )
            code = error_code_of(record)
            if self.places[index] != NOWHERE or (retry_errors and code is not None):
                unwanted.add(place)
            else:
                self.enter(index, place, len(raw), code)
        if unwanted or journal.num_spoilt:
            logger.warning(
                "%s: %d lines taken out that are spoilt, or are to be computed again",
                journal.path,
                len(unwanted) + journal.num_spoilt,
            )
            journal.rewrite(lambda place: place not in unwanted)
            self._forget()
            self.load(journal)
        self.counts.resumed = self.counts.done

    def _forget(self) -> None:
        self.places[:] = NOWHERE
        self.counts = JobCounts(len(self._source))
        self.errors.clear()

    def _index_of(self, record: Mapping[str, Any]) -> int | None:
        number = line_number_of(record)
        if number is not None:
            index = int(np.searchsorted(self._source.numbers, number))
            known = index < len(self._source) and self._source.numbers[index] == number
            return index if known else None
        digest = np.frombuffer(digest_of_id(str(name_of(record))), np.uint64)
        low = int(np.searchsorted(self._names[:, 0], digest[0], side="left"))
        high = int(np.searchsorted(self._names[:, 0], digest[0], side="right"))
        for at in range(low, high):
            if self._names[at, 1] == digest[1]:
                return int(self._lines[at])
        return None


def name_of(record: Mapping[str, Any]) -> Any:
    """What an answer calls its line."""
    return record["custom_id"] if "custom_id" in record else record.get("id")


def line_number_of(record: Mapping[str, Any]) -> int | None:
    """The number of the line, where an error gives it."""
    error = record.get("error")
    number = error.get("line") if isinstance(error, dict) else None
    return number if isinstance(number, int) else None


def error_code_of(record: Mapping[str, Any]) -> str | None:
    """What kind of error an answer is; None for none."""
    error = record.get("error")
    if error is None:
        return None
    return str(error.get("code")) if isinstance(error, dict) else "error"
