# SPDX-License-Identifier: Apache-2.0
"""The files of a job: which they are, and whether they can be, before hours are spent."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from vllm_batchllm.errors import UsageError
from vllm_batchllm.jobs.manifest import manifest_path

STREAM = "-"
_PACKED = (".gz", ".zst", ".zstd", ".parquet")


@dataclass(frozen=True, slots=True)
class JobPaths:
    """output: None for standard output. journal: what has been answered. is_final: OUTPUT is made from the journal at the end.

    spool: where an input goes that cannot be read twice, or not at any place. status: for `vllm-batchllm status`. scratch: a
    folder of this run alone.
    """

    output: Path | None
    journal: Path
    is_final: bool
    spool: Path
    status: Path
    scratch: Path | None = None

    def remove_scratch(self) -> None:
        """Remove what nobody needs once the job is done."""
        self.spool.unlink(missing_ok=True)
        self.spool.with_name(f"{self.spool.name}.json").unlink(missing_ok=True)
        if self.scratch is not None:
            shutil.rmtree(self.scratch, ignore_errors=True)

    def remove_old(self) -> None:
        """Forget an earlier run."""
        old = [manifest_path(self.journal), self.journal, self.spool, self.status]
        old.append(self.spool.with_name(f"{self.spool.name}.json"))
        if self.output is not None:
            old.append(self.output)
        for path in old:
            path.unlink(missing_ok=True)


def job_paths(
    input_name: str, output_name: str, journal: Path | None, status: Path | None, keep_order: bool
) -> JobPaths:
    """Where everything goes.

    Raises:
        UsageError: OUTPUT, or what stands beside it, cannot be written.
    """
    if output_name == STREAM:
        scratch = None if journal else Path(tempfile.mkdtemp(prefix="vllm-batchllm-"))
        base = journal or (scratch or Path()) / "journal.jsonl"
        _check_writable(base)
        made = _paths(None, base, True, status or beside(base, "status.json"))
        return dataclasses.replace(made, scratch=scratch)
    output = Path(output_name)
    _check_writable(output)
    if input_name != STREAM and output.exists() and os.path.samefile(input_name, output):
        raise UsageError(f"INPUT and OUTPUT are the same file, {output}; name another output")
    is_final = journal is not None or keep_order or output.suffix in _PACKED
    where = journal or (beside(output, "journal.jsonl") if is_final else output)
    _check_writable(where)
    return _paths(output, where, is_final, status or beside(output, "status.json"))


def _paths(output: Path | None, journal: Path, is_final: bool, status: Path) -> JobPaths:
    return JobPaths(output, journal, is_final, beside(journal, "input.jsonl"), status)


def beside(path: Path, ending: str) -> Path:
    """A file of the same job: ``path`` with something behind its name."""
    return path.with_name(f"{path.name}.{ending}")


def _check_writable(path: Path) -> None:
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise UsageError(f"the folder {path.parent} does not exist; create it first")
    if path.exists() and not os.access(path, os.W_OK):
        raise UsageError(f"{path} cannot be written: no rights")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"the folder {path.parent} cannot be written: no rights")
