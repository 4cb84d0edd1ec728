# SPDX-License-Identifier: Apache-2.0
"""``make drift OLD=0.32.0 NEW=0.33.0``: which bodies of vLLM that we rely on have changed.

A version that is recorded in ``digests/`` is not read again; any other is read from its source
archive, which has to be pinned. ``--record VERSION`` renews the record of a version.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "upstream"))

import archive
import bodies
from bodies import GONE, Body
from ledger import SYMBOLS
from sources import Sources, archive_reader
from vllm_symbol import VLLMSymbol


def read(release: archive.Release) -> dict[str, Body]:
    """The bodies of a version, out of its archive."""
    sources = Sources(archive_reader(archive.fetched(release)))
    return bodies.bodies_of(SYMBOLS, sources)


def of_version(version: str) -> dict[str, Body]:
    """The bodies of a version, recorded or read.

    Raises:
        ArchiveError: it is neither recorded nor pinned, or its archive is not to be had.
    """
    release = archive.pinned(version)
    recorded = bodies.load(release)
    return recorded if recorded.keys() == {each.path for each in SYMBOLS} else read(release)


def verdict(old: Body, new: Body) -> str:
    """What has become of a body: ``changed``, ``moved`` to another file, ``gone``, ``new`` or
    ``same``."""
    if new.at == GONE:
        return "same" if old.at == GONE else "gone"
    if old.at == GONE:
        return "new"
    if new.sha256 != old.sha256:
        return "changed"
    return "same" if new.file == old.file else "moved"


def report(
    old: Mapping[str, Body], new: Mapping[str, Body], symbols: Iterable[VLLMSymbol]
) -> list[str]:
    """Two lines for each symbol that a person has to look at, those that are gone first."""
    found = []
    for symbol in symbols:
        before, after = old[symbol.path], new[symbol.path]
        said = verdict(before, after)
        if said != "same":
            places = before.at if before.at == after.at else f"{before.at} -> {after.at}"
            found.append((said, f"{said:8} {symbol.path}\n         {places}; {symbol.how}"))
    order = ("gone", "changed", "moved", "new")
    return [line for _, line in sorted(found, key=lambda item: (order.index(item[0]), item[1]))]


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Which bodies of vLLM have changed.")
    parser.add_argument("old", nargs="?", help="a version, such as 0.32.0")
    parser.add_argument("new", nargs="?", help="a version, such as 0.33.0")
    parser.add_argument("--record", metavar="VERSION", help="renew the record of this version")
    options = parser.parse_args()
    try:
        if options.record:
            release = archive.pinned(options.record)
            bodies.save(release, read(release))
            print(f"written to {bodies.path_of(release)}")
            return 0
        if options.old is None or options.new is None:
            parser.error("two versions are needed: make drift OLD=0.32.0 NEW=0.33.0")
        versions = options.old, options.new
        relied_on = [each for each in SYMBOLS if any(map(each.applies_to, versions))]
        lines = report(*map(of_version, versions), relied_on)
    except archive.ArchiveError as error:
        print(f"\nno drift: {error}", file=sys.stderr)
        return 1
    print("\n".join(lines))
    print(f"{len(lines)} of {len(relied_on)} bodies differ between {options.old} and {options.new}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
