# SPDX-License-Identifier: Apache-2.0
"""The error of a batch that no replica is left for."""

from __future__ import annotations


class NoReplicaLeftError(RuntimeError):
    """All replicas are gone for good. What was answered stays answered; the message says what ended the last one."""
