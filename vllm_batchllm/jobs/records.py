# SPDX-License-Identifier: Apache-2.0
"""From answers to lines of the output: those who asked the same get the same, those who are no request get the reason."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vllm_batchllm.input.line import JobLine
from vllm_batchllm.input.record import BadLineError
from vllm_batchllm.input.scan import Input, LineReader
from vllm_batchllm.input.text_plan import Followers
from vllm_batchllm.jobs.answer import Answer, encode_answer, encode_bad_line
from vllm_batchllm.jobs.feed import Read
from vllm_batchllm.jobs.writer import Record

INVALID_LINE = "invalid_line"


class Records:
    """Writes answers down.

    Args:
        is_refused: (num_lines,), lines that get no answer, good ones because their name stands on an earlier line.
        followers: those that ask exactly the same as another.
    """

    def __init__(
        self,
        source: Input,
        reader: LineReader,
        is_refused: npt.NDArray[np.bool_],
        followers: Followers,
    ) -> None:
        self._source, self._reader = source, reader
        self._is_refused, self._followers = is_refused, followers

    def refusal_of(self, read: Read) -> Record | None:
        """The record of a line that is no request, or has the name of another; None for a good one."""
        index, line = read
        number = int(self._source.numbers[index])
        if isinstance(line, BadLineError):
            reason, custom_id, is_plain = str(line), None, self._source.is_plain
        elif self._is_refused[index]:
            reason = "its id stands on an earlier line already; ids must differ"
            custom_id, is_plain = line.custom_id, line.is_plain
        else:
            return None
        packed = encode_bad_line(number, reason, is_plain=is_plain, custom_id=custom_id)
        return Record(index, packed, INVALID_LINE)

    def answered(self, index: int, line: JobLine, answer: Answer) -> list[Record]:
        """The records of a line and of all that ask exactly the same."""
        error = answer.error
        code = None if error is None else str(error.get("code"))
        records = [Record(index, encode_answer(line, answer), code)]
        for other in self._followers.of(index):
            other_line = self._reader.line(other)
            records.append(Record(other, encode_answer(other_line, answer), code))
        return records
