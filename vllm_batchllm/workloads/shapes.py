# SPDX-License-Identifier: Apache-2.0
"""How the requests of each workload are drawn, before they are shuffled.

Lengths below are those of the definitions; `Draw.length` divides them by the scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from vllm_batchllm.errors import UsageError

Request = tuple[list[int], int]
Requests = list[Request]
ScoredRequests = list[tuple[list[int], int, int]]
"""With the position from which on log-probabilities of the prompt are wanted."""

#: Ids below this are left to special tokens (padding, begin, end, the forced stop).
FIRST_TOKEN_ID = 8
#: Block boundaries that prefix-of-prefix cuts at half of the time, tokens.
_ALIGNMENT = 32
#: Tokens of one text; no context is that long, so a scale that asks for more is a slip.
MOST_TOKENS = 2**20
#: Vocabularies up to this size are kept as objects.
_MOST_SHARED_IDS = 2**18
#: Token ids are 32-bit numbers everywhere.
MOST_TOKEN_IDS = 2**31


@dataclass(frozen=True, slots=True)
class Draw:
    """Source of token ids and lengths for one batch."""

    rng: np.random.Generator
    scale: float
    vocab_size: int

    def __post_init__(self) -> None:
        if self.vocab_size <= 2 * FIRST_TOKEN_ID:
            raise UsageError(f"a vocabulary of {self.vocab_size} tokens is too small to draw from")
        if self.vocab_size > MOST_TOKEN_IDS:
            raise UsageError(f"a vocabulary of {self.vocab_size} tokens is too large to draw from")

    def length(self, tokens: float) -> int:
        """`tokens` of the definition, scaled; at least 1.

        Raises:
            UsageError: the scale makes it longer than any context.
        """
        length = tokens / self.scale
        if length > MOST_TOKENS:
            raise UsageError(
                f"scale {self.scale:g} makes texts of {length:,.0f} tokens; "
                f"at most {MOST_TOKENS:,}, so give a larger scale"
            )
        return max(1, round(length))

    def tokens(self, count: int) -> list[int]:
        """`count` uniform token ids."""
        drawn = self.rng.integers(FIRST_TOKEN_ID, self.vocab_size, count)
        ids: list[int]
        if self.vocab_size <= _MOST_SHARED_IDS:
            ids = _one_object_each(self.vocab_size)[drawn].tolist()
        else:
            ids = drawn.tolist()
        return ids


@cache
def _one_object_each(vocab_size: int) -> np.ndarray[tuple[int], np.dtype[np.object_]]:
    """All token ids, so that equal ones in different prompts are one object of Python's: else they need more memory than the
    prompts themselves, which hold eight bytes a token."""
    return np.arange(vocab_size).astype(object)


def two_part(
    draw: Draw, num_requests: int, prefix: int, suffix: int, output: int, degree: int
) -> Requests:
    """`degree` requests share each prefix; the last group may be smaller."""
    requests: Requests = []
    while len(requests) < num_requests:
        shared = draw.tokens(draw.length(prefix))
        for _ in range(min(degree, num_requests - len(requests))):
            own = draw.tokens(draw.length(suffix))
            requests.append((shared + own, draw.length(output)))
    return requests


def industry(draw: Draw, num_requests: int) -> Requests:
    """One instruction for all, then a document of about 1570 ± 600 for 1 to 5 requests."""
    instruction = draw.tokens(draw.length(60))
    requests: Requests = []
    while len(requests) < num_requests:
        size = float(np.clip(draw.rng.normal(1570, 600), 200, 4000))
        shared = instruction + draw.tokens(draw.length(size))
        degree = int(draw.rng.integers(1, 6))
        for _ in range(min(degree, num_requests - len(requests))):
            own = draw.tokens(draw.length(int(draw.rng.integers(20, 41))))
            requests.append((shared + own, draw.length(int(draw.rng.integers(30, 71)))))
    return requests


def decode_heavy(draw: Draw, num_requests: int) -> Requests:
    """512/64/96, degree 8."""
    return two_part(draw, num_requests, 512, 64, 96, 8)


def skewed_output(draw: Draw, num_requests: int) -> Requests:
    """512/64, degree 8; a random tenth of the requests is 25 times as long as the rest."""
    requests = two_part(draw, num_requests, 512, 64, 16, 8)
    long = set(draw.rng.permutation(num_requests)[: round(num_requests / 10)].tolist())
    return [
        (prompt, draw.length(400) if index in long else output)
        for index, (prompt, output) in enumerate(requests)
    ]


def correlated_output(draw: Draw, num_requests: int) -> Requests:
    """512/64, degree 8; a group's output is log-normal (median 37, sigma 1.1), ± 25 % inside it."""
    requests: Requests = []
    for start in range(0, num_requests, 8):
        degree = min(8, num_requests - start)
        middle = 37 * float(np.exp(draw.rng.normal(0.0, 1.1)))
        for prompt, _ in two_part(draw, degree, 512, 64, 16, degree):
            spread = float(draw.rng.uniform(0.75, 1.25))
            requests.append((prompt, draw.length(min(middle * spread, 2000.0))))
    return requests


def tree(draw: Draw, num_requests: int) -> Requests:
    """Three levels of sharing: 1–4 middles under a root, 1–6 leaves each, 1–8 requests each."""
    requests: Requests = []
    rng = draw.rng
    while len(requests) < num_requests:
        root = draw.tokens(draw.length(800))
        for _ in range(int(rng.integers(1, 5))):
            middle = root + draw.tokens(draw.length(600))
            for _ in range(int(rng.integers(1, 7))):
                leaf = middle + draw.tokens(draw.length(800))
                for _ in range(int(rng.integers(1, 9))):
                    own = draw.tokens(draw.length(200))
                    requests.append((leaf + own, draw.length(100)))
    return requests[:num_requests]


def duplicates(draw: Draw, num_requests: int) -> Requests:
    """30 % of the requests repeat, token for token, one of the other 70 %."""
    num_copies = round(0.3 * num_requests)
    originals = two_part(draw, num_requests - num_copies, 2000, 200, 100, 4)
    chosen = draw.rng.integers(0, len(originals), num_copies).tolist()
    return originals + [(list(originals[i][0]), originals[i][1]) for i in chosen]


def prefix_of_prefix(draw: Draw, num_requests: int) -> Requests:
    """Chains of 2 to 6 prompts cut from one text; half of the cuts at block boundaries."""
    requests: Requests = []
    longest = max(2, draw.length(2200))
    while len(requests) < num_requests:
        text = draw.tokens(longest)
        degree = min(int(draw.rng.integers(2, 7)), longest, num_requests - len(requests))
        for cut in _cuts(draw, longest, degree):
            requests.append((text[:cut], draw.length(100)))
    return requests


def _cuts(draw: Draw, longest: int, count: int) -> list[int]:
    """`count` different prompt lengths, the longest among them."""
    cuts = {longest}
    while len(cuts) < count:
        cut = int(draw.rng.integers(1, longest))
        aligned = cut - cut % _ALIGNMENT
        if aligned and aligned not in cuts and draw.rng.random() < 0.5:
            cut = aligned
        cuts.add(cut)
    return sorted(cuts)


def no_sharing(draw: Draw, num_requests: int, output: int = 100) -> Requests:
    """Prompts of 2200 that have nothing in common."""
    return [(draw.tokens(draw.length(2200)), draw.length(output)) for _ in range(num_requests)]


def mixed(draw: Draw, num_requests: int) -> Requests:
    """Half of the requests share 2000 tokens with 15 others, half share nothing and run long."""
    shared = two_part(draw, (num_requests + 1) // 2, 2000, 200, 100, 16)
    return shared + no_sharing(draw, num_requests // 2, output=400)


def multiple_choice(draw: Draw, num_requests: int, shots: int, choices: int) -> ScoredRequests:
    """Subjects of 250 questions with `shots` examples each; a request for every choice.

    An example and a question have about 85 ± 30 tokens (MMLU's mean at five shots is about 600
    tokens a prompt), an answer 1 to 4, which are those that are scored.
    """

    def text() -> list[int]:
        return draw.tokens(draw.length(float(np.clip(draw.rng.normal(85, 30), 30, 250))))

    requests: ScoredRequests = []
    subject: list[int] = []
    while len(requests) < num_requests:
        if len(requests) % (250 * choices) == 0:
            subject = [token for _ in range(shots) for token in text()]
        context = subject + text()
        for _ in range(min(choices, num_requests - len(requests))):
            answer = draw.tokens(int(draw.rng.integers(1, 5)))
            requests.append((context + answer, 1, len(context)))
    return requests
