# SPDX-License-Identifier: Apache-2.0
"""Pure data structures over chained block hashes: no vLLM, no torch."""
