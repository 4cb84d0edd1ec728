# SPDX-License-Identifier: Apache-2.0
"""Errors of batches for which there are no replicas."""

from __future__ import annotations

from vllm_batchllm.errors import UsageError


class NotPlacedError(UsageError):
    """Replicas cannot be had as they were asked for; nothing was begun. The message names the way out."""


class NoReplicaLeftError(RuntimeError):
    """All replicas are gone for good. What was answered stays answered; the message says what ended the last one."""
