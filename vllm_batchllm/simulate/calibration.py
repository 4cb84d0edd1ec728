# SPDX-License-Identifier: Apache-2.0
"""What a step costs on the machine at hand: measured on the real engine, kept in a file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from vllm_batchllm.cache_folder import cache_folder
from vllm_batchllm.errors import UsageError
from vllm_batchllm.simulate.cost_model import MeasuredCosts
from vllm_batchllm.simulate.step_costs import PLATFORM_COSTS

CALIBRATION_FILE = "VLLM_BATCHLLM_CALIBRATION"
"""Environment variable: another place for the file."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Linear costs of a step, and where they are from."""

    costs: MeasuredCosts
    model: str
    environment: Mapping[str, str]
    num_steps: int = 0

    @staticmethod
    def path() -> Path:
        """The file in which calibrations are kept."""
        named = os.environ.get(CALIBRATION_FILE)
        return Path(named).expanduser() if named else cache_folder() / "calibration.json"

    @classmethod
    def load(cls) -> Calibration:
        """The last calibration of this machine, or the reference run's if there is none.

        Raises:
            UsageError: the file is damaged.
        """
        path = cls.path()
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                MeasuredCosts(**data["costs"]),
                data["model"],
                data["environment"],
                data["num_steps"],
            )
        except FileNotFoundError:
            reference = MeasuredCosts.of(PLATFORM_COSTS["cpu"])
            return cls(reference, "random-llama (reference run)", {})
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise UsageError(
                f"the calibration {path} cannot be read ({error}); delete it, or calibrate again"
            ) from None

    def save(self) -> Path:
        """Write the file, replaced as a whole. Raises OSError."""
        path = self.path()
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.part")
        partial.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        os.replace(partial, path)
        return path
