# SPDX-License-Identifier: Apache-2.0
"""Whether the plugin pays on a batch, in one line: rules on what is known before it runs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

LITTLE = 0.01
"""Of all prompt tokens: a difference that is not worth a change of engines."""
KERNEL_READ_RATIO = 0.5
"""Of the KV that decodes read, what must be shared for shared attention to be named where no device is known."""
KERNEL_GAIN = 1.1
"""What shared attention must bring at best to be named."""


class Verdict(StrEnum):
    """What is advised."""

    NOTHING_SHARED = "nothing-shared"
    STOCK_IS_ENOUGH = "stock-is-enough"
    SORTING_IS_ENOUGH = "sorting-is-enough"
    PLUGIN_PAYS = "plugin-pays"
    KERNEL_PAYS = "shared-attention-pays"


@dataclass(frozen=True, slots=True)
class Evidence:
    """Shares of a batch, all but the last of its prompt tokens.

    optimum: what can be saved at best. first_come, in_order: what vLLM's cache saves in the order of the file, and with the
    file sorted by prefixes, less what is computed again as outputs grow; below 0 where that is more. read_ratio: of the
    KV that decodes read, what neighbours share; None where outputs are not known. attention_gain: bounds of the speed with
    shared attention over that without; None where the device is not known.
    """

    optimum: float
    first_come: float
    in_order: float
    read_ratio: float | None = None
    attention_gain: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict and its reason, one sentence."""

    verdict: Verdict
    reason: str


def judge(evidence: Evidence) -> Judgement:
    """The verdict; what shared attention may add stands behind it."""
    verdict, reason = _of_saving(evidence)
    more = "" if verdict is Verdict.NOTHING_SHARED else _of_attention(evidence)
    if more and verdict is Verdict.STOCK_IS_ENOUGH:
        verdict = Verdict.KERNEL_PAYS
    return Judgement(verdict, reason + more)


def _of_saving(evidence: Evidence) -> tuple[Verdict, str]:
    optimum, stock, ordered = evidence.optimum, evidence.first_come, evidence.in_order
    if optimum < LITTLE:
        return Verdict.NOTHING_SHARED, "nothing is shared: no gain"
    if optimum - stock < LITTLE:
        return (
            Verdict.STOCK_IS_ENOUGH,
            "everything fits: stock saves all of it already, no gain by order",
        )
    gain = optimum - stock
    if optimum - ordered < LITTLE:
        return (
            Verdict.SORTING_IS_ENOUGH,
            f"the order of prefixes saves {gain:.0%} of the prompt tokens more than the file's; sorting it gets you all",
        )
    return (
        Verdict.PLUGIN_PAYS,
        f"the plugin saves up to {optimum - ordered:.0%} of the prompt tokens that sorting does not, as outputs push "
        + "requests out; simulate tells what that is worth in time",
    )


def _of_attention(evidence: Evidence) -> str:
    if evidence.attention_gain is not None:
        least, most = evidence.attention_gain
        if most < KERNEL_GAIN:
            return ""
        return f"; shared attention another {least:.1f} to {most:.1f}x (simulated bounds, not measured)"
    if evidence.read_ratio is None or evidence.read_ratio < KERNEL_READ_RATIO:
        return ""
    return (
        f"; {evidence.read_ratio:.0%} of the KV that decodes read is shared, so shared attention may bring more: "
        "give --device and --model-shape for its bounds"
    )
