# SPDX-License-Identifier: Apache-2.0
"""A real browser shows the page without complaint and without asking the network for anything."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from page_model import Reader, page

from vllm_batchllm.page.page import write_page

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
INSTALL = "no browser: apt-get install --no-install-recommends chromium"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason=INSTALL),
]


@dataclass(frozen=True, slots=True)
class Visit:
    """What a browser made of a page: its DOM, what it told the console, what it asked for."""

    dom: str
    console: list[str]
    requests: list[str]


def browse(url: str, folder: Path, *options: str) -> Visit:
    """Open a page in a browser without history, and write down what it does."""
    profile = folder / "profile"
    shutil.rmtree(profile, ignore_errors=True)
    net_log = folder / "net.json"
    command = [
        str(CHROMIUM), "--headless", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--disable-extensions", "--hide-scrollbars", "--enable-logging=stderr",
        # Nothing leaves the machine, whatever the browser would like to ask on its own.
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--user-data-dir={profile}", f"--log-net-log={net_log}", "--dump-dom",
        *(["--no-sandbox"] if os.geteuid() == 0 else []), *options, url,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    return Visit(
        dom=done.stdout,
        console=[line for line in done.stderr.splitlines() if "CONSOLE" in line],
        requests=asked_for(net_log),
    )


def asked_for(net_log: Path) -> list[str]:
    """The addresses of the network log that a page asked for.

    What the browser itself would like to know (updates, accounts) has no page as its origin.
    """
    events = json.loads(net_log.read_text(encoding="utf-8", errors="replace"))["events"]
    asked = [event["params"] for event in events if "initiator" in event.get("params", {})]
    return sorted(
        str(params["url"])
        for params in asked
        if params["initiator"] != "not an origin" and re.match("https?:|wss?:", params["url"])
    )


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, list[str]]]:
    """A local web server that answers nothing and remembers what was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    httpd = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}", asked
    httpd.shutdown()


def test_the_watcher_sees_what_a_careless_page_does(
    tmp_path: Path, server: tuple[str, list[str]]
) -> None:
    """Otherwise the silence of our page would say nothing."""
    url, asked = server
    careless = tmp_path / "careless.html"
    careless.write_text(f"<img src='{url}/x.png'><script>console.error('heard')</script>")
    visit = browse(careless.as_uri(), tmp_path)
    assert asked == ["/x.png"]
    assert f"{url}/x.png" in visit.requests
    assert any("heard" in line for line in visit.console)


def test_a_page_opens_silently_and_completely(tmp_path: Path) -> None:
    path = write_page(page(), tmp_path)
    visit = browse(path.as_uri(), tmp_path)
    assert visit.console == []
    assert visit.requests == []
    assert Reader(visit.dom, inside="title").texts[0] == "Report of one"
    assert Reader(visit.dom, inside="td").texts == Reader(path.read_text(), inside="td").texts
    assert len(re.findall("<svg", visit.dom)) == 5
    assert "2,048" in Reader(visit.dom, inside="td").texts


def test_scripts_in_names_do_not_run_and_addresses_are_not_visited(
    tmp_path: Path, server: tuple[str, list[str]]
) -> None:
    url, asked = server
    asked.clear()
    evil = f"<script>console.error('ran')</script><img src='{url}/evil.png' onerror='x()'>"
    visit = browse(write_page(page(evil), tmp_path).as_uri(), tmp_path)
    assert (visit.console, visit.requests, asked) == ([], [], [])


@pytest.mark.parametrize(
    ("options", "is_dark"),
    [
        (("--window-size=1200,1600",), False),
        (("--window-size=1200,1600", "--blink-settings=preferredColorScheme=0"), True),
        (("--window-size=400,1600",), False),
    ],
    ids=["light", "dark", "narrow"],
)
def test_the_page_is_drawn(tmp_path: Path, options: tuple[str, ...], is_dark: bool) -> None:
    from matplotlib.image import imread

    picture = tmp_path / "page.png"
    path = write_page(page(), tmp_path)
    browse(path.as_uri(), tmp_path, f"--screenshot={picture}", *options)
    pixels = imread(picture)[..., :3]
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    assert (float(np.median(pixels)) < 0.5) == is_dark
