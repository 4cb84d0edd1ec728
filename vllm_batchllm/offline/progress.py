# SPDX-License-Identifier: Apache-2.0
"""The progress bar of a batch: requests, tokens per second, prompt tokens saved so far."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from tqdm import tqdm

from vllm_batchllm.offline.batch import Batch


class BatchProgress:
    """A tqdm bar fed from the books of the batch.

    Args:
        use_tqdm: as in vLLM: False for no bar, True for tqdm, or a callable that makes one.
        total: requests in the batch, duplicates and refused ones included.
    """

    def __init__(self, use_tqdm: bool | Callable[..., Any], total: int) -> None:
        self._bar: Any = None
        if use_tqdm:
            make_bar = use_tqdm if callable(use_tqdm) else tqdm
            self._bar = make_bar(total=total, desc="Processed prompts", dynamic_ncols=True)

    def show(self, batch: Batch) -> None:
        """Bring the bar up to date."""
        if self._bar is None:
            return
        elapsed_s = max(self._bar.format_dict["elapsed"], 1e-9)
        self._bar.set_postfix_str(
            f"input: {batch.prompt_tokens / elapsed_s:.0f} toks/s, "
            f"output: {batch.output_tokens / elapsed_s:.0f} toks/s, "
            f"saved: {batch.saved_so_far:.1%} of prompt tokens",
            refresh=False,
        )
        self._bar.update(batch.num_finished - self._bar.n)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        """Leave the finished bar on screen."""
        if self._bar is not None:
            self._bar.close()
