# SPDX-License-Identifier: Apache-2.0
"""Whether an sdist and a wheel hold what they should, and nothing that they should not: a step of `make dist`.

`twine check` reads how the description is written and no more. Here: every tracked file of the package is in both, byte
for byte; the metadata says all that pyproject.toml says; no file names a folder of the machine that built it.
"""

from __future__ import annotations

import re
import subprocess
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from email.parser import BytesParser
from pathlib import Path
from typing import Any

PACKAGE = "vllm_batchllm"
NOT_IN_SDIST = ("tests/", "benchmarks/", "patches/", ".ci/")
"""Left out by MANIFEST.in, which says why."""

CLASSIFIERS = (
    "Development Status :: ",
    "Intended Audience :: ",
    "Operating System :: POSIX :: Linux",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Programming Language :: Python :: 3.13",
    "Programming Language :: Python :: 3.14",
    "Topic :: ",
    "Typing :: Typed",
)
HOME = re.compile(rb"(?<![\w.$}~-])/(?:home|Users)/[\w.-]+/|(?<![\w.$}~-])/root/")
"""Folders of somebody's machine."""

Files = Mapping[str, bytes]


def tracked_files(root: Path) -> list[str]:
    """Paths of the tracked files below ``root``."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True
    )
    return [name for name in listed.stdout.split("\0") if name and (root / name).is_file()]


def read_wheel(path: Path) -> dict[str, bytes]:
    """Files of a wheel by name."""
    with zipfile.ZipFile(path) as wheel:
        return {name: wheel.read(name) for name in wheel.namelist() if not name.endswith("/")}


def read_sdist(path: Path) -> dict[str, bytes]:
    """Files of an sdist by name, without the folder that holds all."""
    with tarfile.open(path) as sdist:
        found = ((member.name, sdist.extractfile(member)) for member in sdist if member.isfile())
        return {name.partition("/")[2]: file.read() for name, file in found if file is not None}


def problems(root: Path, wheel: Files, sdist: Files) -> Iterator[str]:
    """What is wrong, a line each."""
    tracked = tracked_files(root)
    source = {
        name: (root / name).read_bytes() for name in tracked if name.startswith(f"{PACKAGE}/")
    }
    yield from _content("wheel", source, wheel)
    yield from _content("sdist", source, sdist)
    docs = [name for name in tracked if name.startswith("docs/")]
    for name in (*docs, "README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml"):
        if name not in sdist:
            yield f"sdist: {name} is missing; see MANIFEST.in"
    for name in sdist:
        if name.startswith(NOT_IN_SDIST):
            yield f"sdist: {name} is not to be shipped; see MANIFEST.in"
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    yield from _metadata(project, wheel)
    for kind, files in (("wheel", wheel), ("sdist", sdist)):
        yield from _machine_paths(kind, files, str(root).encode())


def _content(kind: str, source: Files, files: Files) -> Iterator[str]:
    for name, content in source.items():
        if name not in files:
            yield f"{kind}: {name} is missing; see package-data in pyproject.toml"
        elif files[name] != content:
            yield f"{kind}: {name} is not the file of this clone"
    for name in files:
        if name.startswith(f"{PACKAGE}/") and name not in source:
            yield f"{kind}: {name} is not tracked by git"


def _metadata(project: Mapping[str, Any], wheel: Files) -> Iterator[str]:
    folder = f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    if f"{folder}/METADATA" not in wheel:
        yield f"wheel: {folder}/METADATA is missing"
        return
    told = BytesParser().parsebytes(wheel[f"{folder}/METADATA"])
    expected = {
        "Name": project["name"],
        "Version": project["version"],
        "Summary": project["description"],
        "License-Expression": project["license"],
        "License-File": project["license-files"][0],
        "Requires-Python": project["requires-python"],
        "Keywords": ",".join(project["keywords"]),
        "Description-Content-Type": "text/markdown",
    }
    for key, value in expected.items():
        if told[key] != value:
            yield f"metadata: {key} is {told[key]!r}, not {value!r}"
    classifiers = told.get_all("Classifier") or []
    for wanted in CLASSIFIERS:
        if not any(each.startswith(wanted) for each in classifiers):
            yield f"metadata: no classifier {wanted!r}"
    missing = set(project["optional-dependencies"]) - set(told.get_all("Provides-Extra") or [])
    for extra in sorted(missing):
        yield f"metadata: the extra {extra!r} is missing"
    urls = dict(each.split(", ", 1) for each in told.get_all("Project-URL") or [])
    if urls != project.get("urls", {}):
        yield f"metadata: Project-URL is {urls}, not that of pyproject.toml"
    yield from _entry_points(project, wheel.get(f"{folder}/entry_points.txt", b"").decode())


def _entry_points(project: Mapping[str, Any], told: str) -> Iterator[str]:
    groups = {"console_scripts": project["scripts"], **project["entry-points"]}
    for group, entries in groups.items():
        section = told.partition(f"[{group}]\n")[2].partition("\n[")[0]
        for name, target in entries.items():
            if f"{name} = {target}" not in section.splitlines():
                yield f"metadata: no entry point {name} = {target} in {group}"


def _machine_paths(kind: str, files: Files, root: bytes) -> Iterator[str]:
    for name, content in files.items():
        found = HOME.search(content)
        if root in content or found:
            told = found.group().decode() if found else root.decode()
            yield f"{kind}: {name} names a folder of a machine, {told}"
