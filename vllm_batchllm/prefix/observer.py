# SPDX-License-Identifier: Apache-2.0
"""What a forest tells whoever keeps something at its nodes.

The KV block pool files free blocks at the node whose run holds their hash. Nodes come, go and
are cut as requests arrive and leave, so the pool must hear of it; the forest must not know the
pool. A forest without an observer pays nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from vllm_batchllm.prefix.node import PrefixNode


class ForestObserver(Protocol):
    """Called by a forest right after it changed. It may write ``PrefixNode.retained`` only."""

    def on_new_run(self, node: PrefixNode[Any]) -> None:
        """``node`` is new, and so is the whole of its run."""

    def on_split(self, upper: PrefixNode[Any], lower: PrefixNode[Any]) -> None:
        """``lower`` has lost the head of its run to ``upper``, its new parent."""

    def on_removed(self, node: PrefixNode[Any]) -> None:
        """Nothing waits at or below ``node`` any more; its parent has dropped it."""

    def on_reordered(self, node: PrefixNode[Any]) -> None:
        """The key of ``node``, which has retained blocks, may have changed."""
