# SPDX-License-Identifier: Apache-2.0
"""The Batch API of ``vllm serve``: OpenAI's files and batches, run beside interactive requests."""
