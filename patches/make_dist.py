# SPDX-License-Identifier: Apache-2.0
"""Build sdist and wheel into `dist/`, check them, and try the wheel out: what `make dist` runs. Nothing is uploaded.

Built from a copy of the tracked files, so that nothing else of a clone can be shipped, and with the pinned tools of
`.release`, without the isolation in which pip would fetch others. The wheel is made from the sdist.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

from check_dist import problems, read_sdist, read_wheel, tracked_files
from pip_runner import SetupError, run_pip
from try_wheel import install, make_environment, use

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = Path(__file__).with_name("release_requirements.txt")
RELEASE, STAMP = ".release", ".batchllm-release"


def tools(root: Path) -> Path:
    """The Python of `.release`, which is made anew where its pins have changed."""
    folder, pins = root / RELEASE, REQUIREMENTS.read_text()
    python, stamp = folder / "bin" / "python", folder / STAMP
    if not (python.exists() and stamp.is_file() and stamp.read_text() == pins):
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        run_pip(python, ["-r", str(REQUIREMENTS)], f"tools of a release, in {RELEASE}")
        stamp.write_text(pins)
    return python


def build(python: Path, root: Path, out: Path) -> tuple[Path, Path]:
    """The wheel and the sdist of the tracked files below ``root``, in the empty folder ``out``."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "clone"
        for name in tracked_files(root):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, copy / name)
        _run(python, ["-m", "build", "--no-isolation", "--outdir", str(out), str(copy)])
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    _run(python, ["-m", "twine", "check", "--strict", str(wheel), str(sdist)])
    return wheel, sdist


def _run(python: Path, words: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), *words], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        last = (done.stdout + done.stderr).strip()[-2000:]
        raise SetupError(f"`python {' '.join(words[:3])}` failed:\n{last}")


def make_dist(root: Path) -> None:
    """Fill `dist/` with files that passed every check, or leave it empty.

    Raises:
        SetupError: says what is wrong.
    """
    start, dist = time.monotonic(), root / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    python = tools(root)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out"
        wheel, sdist = build(python, root, out)
        print(f"built and checked by twine: {wheel.name}, {sdist.name}", flush=True)
        found = list(problems(root, read_wheel(wheel), read_sdist(sdist)))
        if found:
            raise SetupError("\n".join(found))
        print("content and metadata are complete; trying the wheel out", flush=True)
        fresh = make_environment(Path(scratch) / "fresh")
        install(wheel, fresh)
        empty = Path(scratch) / "empty"
        empty.mkdir()
        use(fresh, empty)
        shutil.copytree(out, dist)
    print(f"dist/ is ready after {time.monotonic() - start:.0f} s; nothing was uploaded")


def main() -> int:
    """Returns the exit code."""
    try:
        make_dist(ROOT)
    except SetupError as error:
        print(f"\ndist stopped: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
