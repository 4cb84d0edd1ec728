# SPDX-License-Identifier: Apache-2.0
"""Parts of the offline path that ``vllm_batchllm.LLM`` puts around vLLM's."""
