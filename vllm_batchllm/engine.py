# SPDX-License-Identifier: Apache-2.0
"""What stands behind ``LLM``, jobs and replicas alike: one protocol, below all three."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Report(Protocol):
    """What a batch cost and what was saved."""

    def to_dict(self) -> Mapping[str, Any]:
        """All figures as plain JSON values."""


class BatchEngine(Protocol):
    """An engine that answers whole batches: one of vLLM's in this process, or many elsewhere.

    Prompts, parameters and outputs are vLLM's own, so that nobody above has to know where they
    are computed.
    """

    def generate(self, prompts: Any, sampling_params: Any = None, **options: Any) -> list[Any]:
        """One output for each prompt, in the order of the prompts.

        A prompt that is refused among others has an output that says so, in its place.

        Raises:
            Exception: none of the prompts could be accepted; the first refusal.
        """

    def chat(self, messages: Any, sampling_params: Any = None, **options: Any) -> list[Any]:
        """The same for conversations."""

    def report(self) -> Report:
        """Of the last finished batch. Raises RuntimeError if none has run."""
