# SPDX-License-Identifier: Apache-2.0
"""How vLLM finds us, and what it is told."""

from vllm_batchllm.plugin.registration import register

__all__ = ["register"]
