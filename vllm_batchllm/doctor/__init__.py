# SPDX-License-Identifier: Apache-2.0
"""``vllm-batchllm doctor``: whether the plugin works on this machine, in plain lines."""
