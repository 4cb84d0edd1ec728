# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics of a server that runs our scheduler, beside vLLM's own."""
