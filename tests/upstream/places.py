# SPDX-License-Identifier: Apache-2.0
"""A folder in which vLLM's tests find what they look for: sources, models, packages, our plugin."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import archive

PLUGIN = "vllm_batchllm_conformance"
"""Name under which vLLM finds ``substitution.install_in_engine``."""
PLUGIN_FOLDER = "plugin"
# vLLM's conftest wants `tblib` only to carry exceptions out of child processes; of `pytest_asyncio`
# its tests want fixtures that are coroutines.
STAND_INS = {
    "tblib": {
        "__init__.py": "",
        "pickling_support.py": "def install():\n    pass\n",
    },
    "pytest_asyncio": {"__init__.py": "from coroutines import fixture\n"},
}


def prepared(folder: Path, models: Path) -> Path:
    """Make ``folder`` a place to run the installed vLLM's tests in, with the folders of ``models``.

    Raises:
        ArchiveError: the source archive is not to be had.
    """
    archive.unpacked(archive.fetched(archive.installed()), folder)
    for owner in models.iterdir():
        (folder / owner.name).symlink_to(owner)
    for package, files in STAND_INS.items():
        if importlib.util.find_spec(package) is None:
            (folder / package).mkdir()
            for name, text in files.items():
                (folder / package / name).write_text(text)
    _write_plugin(folder / PLUGIN_FOLDER)
    return folder


def _write_plugin(folder: Path) -> None:
    """What an installed package would leave: enough for vLLM's processes to load the plugin."""
    metadata = folder / f"{PLUGIN}-0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PLUGIN}\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text(
        f"[vllm.general_plugins]\n{PLUGIN} = substitution:install_in_engine\n"
    )
