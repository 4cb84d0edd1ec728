# SPDX-License-Identifier: Apache-2.0
"""Everything that subclasses vLLM's scheduler side."""
