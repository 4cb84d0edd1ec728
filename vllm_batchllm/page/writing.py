# SPDX-License-Identifier: Apache-2.0
"""Writing a page while the report it shows still grows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from vllm_batchllm.errors import UsageError
from vllm_batchllm.page.page import Page, check_folder, write_page

ReportT = TypeVar("ReportT")


def into_folder(folder: Path, make: Callable[[ReportT], Page]) -> Callable[[ReportT], None]:
    """What writes the page that `make` makes of a report into `folder`, which is tried at once.

    Raises:
        UsageError: the folder cannot be written; so does the returned function.
    """

    def write(report: ReportT) -> None:
        try:
            write_page(make(report), folder)
        except OSError as error:
            raise _unwritable(folder, error) from error

    try:
        check_folder(folder)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return write


def _unwritable(folder: Path, error: OSError) -> UsageError:
    return UsageError(f"--report: cannot write a page into {folder}: {error.strerror or error}")
