# SPDX-License-Identifier: Apache-2.0
"""``VLLM_BATCHLLM=1``: our scheduler in every engine of a process tree that has none of its own.

For tools that build their engine themselves and take no scheduler. A scheduler that the user chose wins, and what ours
cannot serve runs on vLLM's; one line of the log says either. Chosen by option, the same is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "VLLM_BATCHLLM"
PREFIX = "VLLM_BATCHLLM_"

_YES, _NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


class NotServedError(ValueError):
    """What our scheduler cannot serve, and vLLM's can."""


def decline() -> None:
    """A command line has chosen vLLM's own scheduler by name: that wins, in the processes that it starts, too.

    Where ``vllm serve`` runs several API servers, each of them makes the config anew and sees no command line.
    """
    if VARIABLE in os.environ:
        os.environ[VARIABLE] = "0"


def is_chosen() -> bool:
    """Whether the environment chooses our scheduler.

    Raises:
        ValueError: the variable holds neither yes nor no.
    """
    value = os.environ.get(VARIABLE, "").strip().lower()
    if value not in (*_YES, *_NO):
        raise ValueError(
            f"{VARIABLE} = {value[:40]!r} is neither yes nor no; set it to 1 for the batchllm scheduler, or to 0"
        )
    return value in _YES


@contextmanager
def names_known() -> Iterator[None]:
    """While it is open, vLLM takes our variables for its own: it warns of others named ``VLLM_…``, or refuses them.

    They are known by name only, and not for longer: what vLLM makes of all it knows (keys of caches) is to stay as it is.
    """
    from vllm import envs

    table = envs.environment_variables
    ours = [name for name in os.environ if name == VARIABLE or name.startswith(PREFIX)]
    added = [name for name in ours if name not in table]
    table.update(dict.fromkeys(added, _nothing))
    try:
        yield
    finally:
        for name in added:
            table.pop(name, None)


def _nothing() -> None:
    """The value of our variables, as far as vLLM is told."""
