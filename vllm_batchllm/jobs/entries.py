# SPDX-License-Identifier: Apache-2.0
"""What came of a line, entered into counts and journal: the same whether one engine has answered it or one of many."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_batchllm.input.line import JobLine
from vllm_batchllm.jobs.answer import Answer
from vllm_batchllm.jobs.books import JobCounts
from vllm_batchllm.jobs.feed import Read
from vllm_batchllm.jobs.records import Records
from vllm_batchllm.jobs.writer import JournalWriter


@dataclass(frozen=True, slots=True)
class Entries:
    """records: makes lines of the output. writer: puts them into the journal. counts: of lines and tokens."""

    records: Records
    writer: JournalWriter
    counts: JobCounts

    async def refused(self, read: Read, new_bytes: int) -> bool:
        """Answer a line that is no request, or has the name of another; False for a good one."""
        refusal = self.records.refusal_of(read)
        if refusal is None:
            return False
        self.counts.new_bytes_left -= new_bytes
        await self.writer.put([refusal])
        return True

    async def answered(self, index: int, line: JobLine, answer: Answer, new_bytes: int) -> int:
        """Enter the answer of a line, for those that ask the same as well. Returns its prompt's tokens, 0 if unknown."""
        usage = answer.usage
        prompt_tokens = int(usage.get("prompt_tokens") or 0)
        self.counts.prompt_tokens += prompt_tokens
        self.counts.output_tokens += int(usage.get("completion_tokens") or 0)
        await self.writer.put(self.records.answered(index, line, answer))
        self.counts.new_bytes_left -= new_bytes
        return prompt_tokens
