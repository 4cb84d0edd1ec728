# SPDX-License-Identifier: Apache-2.0
"""`vllm-batchllm bench`: stock, sorted and batchllm admission on the same engine arguments."""
