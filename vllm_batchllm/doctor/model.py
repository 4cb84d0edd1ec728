# SPDX-License-Identifier: Apache-2.0
"""The model that the doctor asks with: the user's, or a small random one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from vllm_batchllm.bench.engine import prepare_environment
from vllm_batchllm.bench.random_model import RandomModelSpec, random_model
from vllm_batchllm.bench.suite import resolve_model
from vllm_batchllm.doctor.finding import Finding

SMALL = RandomModelSpec(num_layers=2, max_position_embeddings=4096)
"""Heads of 64, which every attention backend serves."""


class Resolved(NamedTuple):
    """dtype: float32 on a CPU, where answers are compared token for token."""

    path: str
    vocab_size: int
    dtype: str
    on_cpu: bool


def resolve(model: str | None, folder: Path, into: list[Resolved]) -> Iterator[Finding]:
    """Put the model into ``into``, and say which it is. folder: where the random model is written.

    Raises:
        UsageError: the model cannot be read, or the folder not written.
    """
    on_cpu = prepare_environment()
    if model is None:
        path, vocab_size = str(random_model(folder, SMALL)), SMALL.vocab_size
        yield Finding("ok", "model", "a small random Llama of 2 layers, in a temporary folder")
    else:
        path, vocab_size = resolve_model(model)
        yield Finding("ok", "model", model)
    into.append(Resolved(path, vocab_size, "float32" if on_cpu else "auto", on_cpu))
