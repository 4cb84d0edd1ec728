# SPDX-License-Identifier: Apache-2.0
"""Brings vLLM's source archives: fetched once, kept in the user's cache, checked against pins.

pip says where an archive lies, so that whatever index is configured for it is used; building
anything of the archive, as ``pip download`` would, is not needed to read it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import ssl
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vllm-batchllm"
# Everything the tests read beside themselves. Not `vllm/`: the installed one is to be tested.
TEST_PARTS = (
    "tests",
    "examples",
    "benchmarks",
    "requirements",
    "tools",
    "docker",
    "pyproject.toml",
)
CHUNK_BYTES = 1 << 20


class ArchiveError(Exception):
    """The archive is not to be had; the text says why, and the way out."""


@dataclass(frozen=True)
class Release:
    """A version of vLLM and the checksum of its source archive."""

    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        """The archive's name on any index."""
        return f"vllm-{self.version}.tar.gz"

    @property
    def minor(self) -> str:
        """The two numbers that the supported range is made of."""
        return ".".join(self.version.split(".")[:2])


CURRENT = Release("0.32.0", "d2c957d5eee3d0985012151315ddc62cbe0cd368fc96a5fc3510438d9dddf2ad")
"""The version that ``make setup`` installs."""
NEXT = Release("0.33.0", "f4c33c2503d52bb411146afa9618a4f48bed68912f617e6803ac8d76e4c74112")
"""The newest supported version, which ``make test-next`` runs on."""
PINNED = {release.version: release for release in (CURRENT, NEXT)}


def pinned(version: str) -> Release:
    """The pinned release with this version; a local tag such as ``+cpu`` does not matter.

    Raises:
        ArchiveError: none is pinned.
    """
    release = PINNED.get(version.partition("+")[0])
    if release is None:
        raise ArchiveError(
            f"no source archive is pinned for vLLM {version}, only for {', '.join(PINNED)}: "
            "add its SHA-256 to tests/upstream/archive.py"
        )
    return release


def installed() -> Release:
    """The pinned release of the vLLM that this process imports.

    Raises:
        ArchiveError: none is pinned for it.
    """
    return pinned(importlib.metadata.version("vllm"))


def fetched(release: Release, cache: Path = CACHE) -> Path:
    """The checked archive, downloaded into ``cache`` if it is not there yet (47 MB).

    Raises:
        ArchiveError: no network, no such file on the index, or another checksum.
    """
    path = cache / release.file_name
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        _download(_address(release.file_name), path)
    check(release, path)
    return path


def check(release: Release, path: Path) -> None:
    """Raise ArchiveError unless ``path`` has the pinned checksum."""
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != release.sha256:
        raise ArchiveError(
            f"{path} has SHA-256 {found} instead of the pinned {release.sha256}: the file is "
            "damaged, or the index serves another one. Delete it and run the same command again"
        )


def unpacked(archive: Path, folder: Path, parts: tuple[str, ...] = TEST_PARTS) -> Path:
    """Unpack ``parts`` of an archive, by default what tests need, into ``folder``; returns it."""
    return _extracted(archive, folder, lambda inner: inner.split("/")[0] in parts)


def _extracted(archive: Path, folder: Path, is_wanted: Callable[[str], bool]) -> Path:
    with tarfile.open(archive) as tar:
        for member in tar:
            _, _, inner = member.name.partition("/")
            if is_wanted(inner):
                member.name = inner
                tar.extract(member, folder, filter="data")
    return folder


def _pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", *arguments, "--disable-pip-version-check"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _address(file_name: str) -> str:
    """Where the archive lies, by the index that pip is configured with."""
    result = _pip("index", "versions", "vllm", "-vv", "--no-binary", "vllm", "--no-input")
    said = result.stdout + result.stderr
    links = re.findall(rf"Found link (\S+/{re.escape(file_name)})(?:[#\s]|$)", said)
    if not links:
        last = "\n".join(result.stderr.strip().splitlines()[-3:])
        raise ArchiveError(
            f"the package index names no {file_name}: check the network and `pip config list`, "
            f"or put the file into {CACHE} yourself. pip said:\n{last}"
        )
    return str(links[0])


def _download(url: str, path: Path) -> None:
    context = ssl.create_default_context()
    certificates = os.environ.get("PIP_CERT") or _pip("config", "get", "global.cert").stdout.strip()
    if certificates:
        context.load_verify_locations(certificates)
    try:
        with (
            urllib.request.urlopen(url, timeout=60, context=context) as response,
            tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as partial,
        ):
            size = int(response.headers.get("Content-Length") or 0)
            bar = tqdm(total=size, desc=path.name, unit="B", unit_scale=True, disable=None)
            with bar:
                while chunk := response.read(CHUNK_BYTES):
                    bar.update(partial.write(chunk))
    except (urllib.error.URLError, OSError) as error:
        raise ArchiveError(
            f"{path.name} could not be downloaded ({error}): check the network, or put the file "
            f"into {path.parent} yourself"
        ) from error
    # Under its name only once it is whole.
    os.replace(partial.name, path)


def main() -> int:
    """``archive.py VERSION``: fetch an archive that is not pinned yet, and print its checksum."""
    version = sys.argv[1] if len(sys.argv) == 2 else ""
    if not re.fullmatch(r"\d+(\.\d+)+(\.post\d+)?", version):
        print("one version is needed, such as: archive.py 0.33.0", file=sys.stderr)
        return 2
    path = CACHE / Release(version, "").file_name
    try:
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            _download(_address(path.name), path)
    except ArchiveError as error:
        print(f"no archive: {error}", file=sys.stderr)
        return 1
    with path.open("rb") as stream:
        print(f'Release("{version}", "{hashlib.file_digest(stream, "sha256").hexdigest()}")')
    return 0


if __name__ == "__main__":
    sys.exit(main())
