# SPDX-License-Identifier: Apache-2.0
"""KV cache blocks: which one is given up first, decided by who still waits for it."""
