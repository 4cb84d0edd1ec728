# SPDX-License-Identifier: Apache-2.0
"""Check a pair of engines in a process of their own; the kinds of KV cache groups go to a file.

python pair_run.py MODEL ENGINE_ARGUMENTS.json RESULT.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tiny_engines import check_shares_more_than_stock


def main(model: str, arguments: Path, result: Path) -> None:
    kinds, _ = check_shares_more_than_stock(model, **json.loads(arguments.read_text()))
    result.write_text(json.dumps(sorted(kind.__name__ for kind in kinds)))


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
