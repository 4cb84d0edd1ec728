# SPDX-License-Identifier: Apache-2.0
"""The door: ``from vllm_batchllm import LLM``."""

from __future__ import annotations

from vllm_batchllm.offline.engine import OfflineEngine


class LLM(OfflineEngine):
    """``vllm.LLM`` for batches that share prefixes; same arguments, methods and outputs.

    Args:
        model: as in ``vllm.LLM``.
        batchllm: our options, as a mapping or a :class:`BatchLLMConfig`.
        **kwargs: everything else that ``vllm.LLM`` takes.

    Outputs come in the caller's order. In a call with several prompts, one that vLLM refuses
    (too long, empty, ...) yields a :class:`FailedRequestOutput` in its place and the others
    complete; if none can be accepted, the first error is raised, as in vLLM.

    Raises:
        ValueError: a bad option, prefix caching switched off, a scheduler that is not ours, or a
            model folder that is missing or has no config.
        UnsupportedVLLMError: the installed vLLM is outside the supported range.
    """
