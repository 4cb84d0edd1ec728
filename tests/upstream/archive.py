# SPDX-License-Identifier: Apache-2.0
"""Brings vLLM's source archive: fetched once, kept in the user's cache, checked against a pin.

pip says where the archive lies, so that whatever index is configured for it is used; building
anything of the archive, as ``pip download`` would, is not needed to read its tests.
"""

from __future__ import annotations

import hashlib
import os
import re
import ssl
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

VERSION = "0.32.0"
FILE_NAME = f"vllm-{VERSION}.tar.gz"
SHA256 = "d2c957d5eee3d0985012151315ddc62cbe0cd368fc96a5fc3510438d9dddf2ad"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vllm-batchllm"
# Everything the tests read beside themselves. Not `vllm/`: the installed one is to be tested.
PARTS = ("tests", "examples", "benchmarks", "requirements", "tools", "docker", "pyproject.toml")
CHUNK_BYTES = 1 << 20


class ArchiveError(Exception):
    """The archive is not to be had; the text says why, and the way out."""


def fetched(cache: Path = CACHE) -> Path:
    """The checked archive, downloaded into ``cache`` if it is not there yet (45 MB).

    Raises:
        ArchiveError: no network, no such file on the index, or another checksum.
    """
    path = cache / FILE_NAME
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        _download(_address(), path)
    check(path)
    return path


def check(path: Path) -> None:
    """Raise ArchiveError unless ``path`` has the pinned checksum."""
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != SHA256:
        raise ArchiveError(
            f"{path} has SHA-256 {found} instead of the pinned {SHA256}: the file is damaged, or "
            "the index serves another one. Delete it and run the same command again"
        )


def unpacked(archive: Path, folder: Path) -> Path:
    """Unpack the parts that tests need into ``folder``; returns it."""
    with tarfile.open(archive) as tar:
        for member in tar:
            _, _, inner = member.name.partition("/")
            if inner.split("/")[0] in PARTS:
                member.name = inner
                tar.extract(member, folder, filter="data")
    return folder


def _pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", *arguments, "--disable-pip-version-check"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _address() -> str:
    """Where the archive lies, by the index that pip is configured with."""
    result = _pip("index", "versions", "vllm", "-vv", "--no-binary", "vllm", "--no-input")
    said = result.stdout + result.stderr
    links = re.findall(rf"Found link (\S+/{re.escape(FILE_NAME)})(?:[#\s]|$)", said)
    if not links:
        last = "\n".join(result.stderr.strip().splitlines()[-3:])
        raise ArchiveError(
            f"the package index names no {FILE_NAME}: check the network and `pip config list`, "
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
            bar = tqdm(total=size, desc=FILE_NAME, unit="B", unit_scale=True, disable=None)
            with bar:
                while chunk := response.read(CHUNK_BYTES):
                    bar.update(partial.write(chunk))
    except (urllib.error.URLError, OSError) as error:
        raise ArchiveError(
            f"{FILE_NAME} could not be downloaded ({error}): check the network, or put the file "
            f"into {path.parent} yourself"
        ) from error
    # Under its name only once it is whole.
    os.replace(partial.name, path)
