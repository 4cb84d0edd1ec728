# SPDX-License-Identifier: Apache-2.0
"""vLLM's KV offloading to host memory, for a device that is the host itself.

vLLM's own copies need a GPU's streams. Everything else is vLLM's: the connector, what is stored,
loaded and forgotten, and when a request may go on. Transfers end a step after they began, so
requests do wait for them.
"""

from __future__ import annotations

import torch
from vllm.v1.kv_offload.base import (
    CanonicalKVCaches,
    GPULoadStoreSpec,
    LoadStoreSpec,
    OffloadingWorker,
    TransferResult,
)
from vllm.v1.kv_offload.cpu.common import CPULoadStoreSpec
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec


class HostCopyWorker(OffloadingWorker):
    """Copies KV blocks between two tensors of the host, one chunk per block."""

    def __init__(self, kv_caches: CanonicalKVCaches, num_chunks: int) -> None:
        self.device = [each.tensor for each in kv_caches.tensors]
        self.host = [
            torch.empty((num_chunks, each.shape[1]), dtype=each.dtype) for each in self.device
        ]
        self.ended: list[TransferResult] = []
        self.num_stored = self.num_loaded = 0

    def submit_store(
        self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec
    ) -> bool:
        assert isinstance(dst_spec, CPULoadStoreSpec)
        for device, host in zip(self.device, self.host, strict=True):
            host[dst_spec.block_ids] = device[src_spec.block_ids]
        self.num_stored += len(src_spec.block_ids)
        self.ended.append(TransferResult(job_id, success=True))
        return True

    def submit_load(self, job_id: int, src_spec: LoadStoreSpec, dst_spec: GPULoadStoreSpec) -> bool:
        assert isinstance(src_spec, CPULoadStoreSpec)
        for device, host in zip(self.device, self.host, strict=True):
            device[dst_spec.block_ids] = host[src_spec.block_ids]
        self.num_loaded += len(dst_spec.block_ids)
        self.ended.append(TransferResult(job_id, success=True))
        return True

    def get_finished(self) -> list[TransferResult]:
        ended, self.ended = self.ended, []
        return ended

    def wait(self, job_ids: set[int]) -> None:
        """Copies are done when they are submitted."""


class HostOffloadingSpec(CPUOffloadingSpec):
    """vLLM's spec with :class:`HostCopyWorker` in it; ``latest`` is the one made last."""

    latest: HostCopyWorker | None = None

    def get_worker(self, kv_caches: CanonicalKVCaches) -> HostCopyWorker:
        HostOffloadingSpec.latest = HostCopyWorker(kv_caches, self.num_chunks)
        return HostOffloadingSpec.latest
