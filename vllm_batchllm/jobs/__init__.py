# SPDX-License-Identifier: Apache-2.0
"""Batch jobs that survive their machine: one reader, one plan on text, one journal, one feed."""
