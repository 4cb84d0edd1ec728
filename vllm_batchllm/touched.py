# SPDX-License-Identifier: Apache-2.0
"""An entry of the ledger (see ``compat.py``): one symbol of vLLM that we rely on."""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Touched:
    """One symbol of vLLM that we rely on.

    path: ``module:attribute.attribute``. parameters: parameter names that must exist, for
    callables we override or call.
    """

    path: str
    why: str
    how: str
    until: str
    parameters: tuple[str, ...] = ()

    def resolve(self) -> Any:
        """The live object. Raises ImportError or AttributeError when upstream moved it."""
        module, _, attributes = self.path.partition(":")
        return functools.reduce(getattr, attributes.split("."), importlib.import_module(module))
