"""A headless Chromium, driven over WebDriver with the standard library alone."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--window-size=1320,1000", "--hide-scrollbars",
)  # fmt: skip
MISSING = "needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)"

NO_FONT = "needs a font as narrow as a desktop's (Debian: apt-get install fonts-liberation)"


def wide_font() -> bool:
    """Whether pages that ask for Helvetica get DejaVu Sans, which is a tenth wider."""
    if (program := shutil.which("fc-match")) is None:
        return False
    found = subprocess.run([program, "Helvetica"], capture_output=True, text=True, check=False)
    return "DejaVu" in found.stdout


class Browser:
    """One page."""

    def __init__(self, port: int, profile: Path, flags: tuple[str, ...] = ()) -> None:
        self._base = f"http://127.0.0.1:{port}"
        arguments = [*FLAGS, f"--user-data-dir={profile}", *flags]
        wanted = {
            "goog:chromeOptions": {"binary": CHROMIUM, "args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        session = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._base += f"/session/{session['sessionId']}"

    def open(self, url: str) -> None:
        """Load a page and wait for it."""
        self._call("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """The value that a script of the page returns."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, script: str, seconds: float = 30.0, *arguments: Any) -> Any:
        """Until the script returns something true."""
        end = time.monotonic() + seconds
        while not (value := self.run(script, *arguments)):
            assert time.monotonic() < end, f"still false: {script}"
            time.sleep(0.1)
        return value

    def element(self, css: str) -> str:
        """The id of the first element that matches."""
        found = self._call("POST", "/element", {"using": "css selector", "value": css})
        return str(next(iter(found.values())))

    def click(self, css: str) -> None:
        """A real click, with the pointer."""
        self._call("POST", f"/element/{self.element(css)}/click", {})

    def press(self, at: tuple[float, float]) -> None:
        """A real click, at a point of the page."""
        move = {"type": "pointerMove", "duration": 0, "x": round(at[0]), "y": round(at[1])}
        down, up = ({"type": kind, "button": 0} for kind in ("pointerDown", "pointerUp"))
        pointer = {"type": "pointer", "id": "p", "actions": [move, down, up]}
        self._call("POST", "/actions", {"actions": [pointer]})

    def type(self, css: str, text: str) -> None:
        """Real keys, into an element."""
        self._call("POST", f"/element/{self.element(css)}/value", {"text": text})

    def keys(self, *keys: str) -> None:
        """Real keys, wherever the focus is."""
        actions = [{"type": kind, "value": k} for k in keys for kind in ("keyDown", "keyUp")]
        self._call(
            "POST", "/actions", {"actions": [{"type": "key", "id": "k", "actions": actions}]}
        )

    def hover(self, css: str) -> None:
        """Move the pointer onto an element."""
        origin = {"element-6066-11e4-a52e-4f735466cecf": self.element(css)}
        move = {"type": "pointerMove", "duration": 50, "x": 0, "y": 0, "origin": origin}
        pointer = {"type": "pointer", "id": "p", "actions": [move]}
        self._call("POST", "/actions", {"actions": [pointer]})

    def resize(self, width: int, height: int) -> None:
        """Set the size of the page's viewport, as a phone or a wide screen would have it."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        command = {"cmd": "Emulation.setDeviceMetricsOverride", "params": size}
        self._call("POST", "/goog/cdp/execute", command)

    def errors(self) -> list[str]:
        """What the console complained of since the last look."""
        entries = self._call("POST", "/se/log", {"type": "browser"})
        return [e["message"] for e in entries if e["level"] == "SEVERE"]

    def screenshot(self, path: Path) -> None:
        """What a person would see, as PNG."""
        path.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))

    def close(self) -> None:
        self._call("DELETE", "")

    def _call(self, verb: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data, method=verb)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()[:600]) from None


@contextmanager
def chromium(folder: Path, *flags: str) -> Iterator[Browser]:
    """A browser with a new profile below `folder`."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    assert DRIVER is not None, MISSING
    driver = subprocess.Popen(
        [DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(200):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        browser = Browser(port, folder / "profile", flags)
        try:
            yield browser
        finally:
            browser.close()
    finally:
        driver.terminate()
        driver.wait(20)
