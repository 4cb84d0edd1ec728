# SPDX-License-Identifier: Apache-2.0
"""Batch jobs that survive their machine: files in, answers out."""
