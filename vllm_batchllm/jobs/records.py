# SPDX-License-Identifier: Apache-2.0
"""From answers to lines of the output: those who asked the same get the same, those who are no request get the reason."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from vllm_batchllm.input.request import BadLineError
from vllm_batchllm.jobs.feed import Read
from vllm_batchllm.jobs.line import Answer, JobLine, encode_answer, encode_bad_line
from vllm_batchllm.jobs.scan import Input, LineReader
from vllm_batchllm.jobs.writer import Record

INVALID_LINE = "invalid_line"


class Records:
    """Writes answers down.

    Args:
        repeated: lines whose name stands on an earlier one. followers: by line, those that ask exactly the same.
    """

    def __init__(
        self,
        source: Input,
        reader: LineReader,
        repeated: Collection[int],
        followers: Mapping[int, Sequence[int]],
    ) -> None:
        self._source, self._reader = source, reader
        self._repeated, self._followers = repeated, followers

    def refusal_of(self, read: Read) -> Record | None:
        """The record of a line that is no request, or has the name of another; None for a good one."""
        index, line = read
        number = int(self._source.numbers[index])
        if isinstance(line, BadLineError):
            reason, custom_id, is_plain = str(line), None, self._source.is_plain
        elif index in self._repeated:
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
        for other in self._followers.get(index, ()):
            other_line = self._reader.line(other)
            records.append(Record(other, encode_answer(other_line, answer), code))
        return records
