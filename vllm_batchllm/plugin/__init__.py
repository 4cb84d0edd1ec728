# SPDX-License-Identifier: Apache-2.0
"""How vLLM finds us, and what it is told."""

from vllm_batchllm.plugin import registration

__all__ = ["register"]


def register() -> None:
    """vLLM's entry point to us, called in every process: the scheduler, and the server's Batch API."""
    # The only import of a room above: vLLM calls one function, and the Batch API stands on everything.
    from vllm_batchllm.batch_api import attach

    registration.register()
    attach.register()
