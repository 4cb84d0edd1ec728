# SPDX-License-Identifier: Apache-2.0
"""Our models for lm-evaluation-harness: ``python -m vllm_batchllm.lm_eval run --model vllm-batchllm ...``."""
