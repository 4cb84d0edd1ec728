# SPDX-License-Identifier: Apache-2.0
"""What an entry of the ledger is: one thing of vLLM that we rely on, and for how long."""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import Any

from packaging.version import Version


def live(path: str) -> Any:
    """The object at ``module:attribute.attribute``.

    Raises:
        ImportError, AttributeError: upstream has moved it.
    """
    module, _, attributes = path.partition(":")
    return functools.reduce(getattr, attributes.split("."), importlib.import_module(module))


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Why and how we rely on something, and when we need not any more.

    below: the version from which on nothing relies on it; empty where every supported version
    does. since: the version before which it was not there, or was something else. Both are there
    to be taken off: a test fails when the supported range has passed them.
    """

    why: str
    how: str
    until: str
    below: str = ""
    since: str = ""

    def applies_to(self, version: str) -> bool:
        """Whether we rely on it in this version of vLLM."""
        installed = Version(Version(version).public)
        return not (
            (self.below and installed >= Version(self.below))
            or (self.since and installed < Version(self.since))
        )


@dataclass(frozen=True, slots=True)
class VLLMSymbol(Entry):
    """A module's member: a class, a function, a method.

    path: ``module:attribute.attribute``. parameters: parameter names that must exist, for
    callables we override or call. source: where its body is written, if not under ``path``.
    """

    path: str
    parameters: tuple[str, ...] = ()
    source: str = ""


@dataclass(frozen=True, slots=True)
class VLLMAttribute(Entry):
    """Something that an object of vLLM holds, and its type.

    path: the name of an object that the ring builds, then attributes. type: of what is there, as
    ``module:name``; a subclass will do.
    """

    path: str
    type: str
