"""A real browser, driven over a pipe: no package between a test and what a reader sees."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
    "--remote-debugging-pipe",
)


class Browser:
    """One tab of Chromium, spoken to in its debugging protocol: JSON messages that end in NUL."""

    def __init__(self, program: str, profile: Path) -> None:
        from_us, to_browser = os.pipe()
        from_browser, to_us = os.pipe()
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        # The browser reads from descriptor 3 and writes to 4.
        shell = f'exec "$@" 3<&{from_us} 4>&{to_us}'
        command = [program, *FLAGS, *sandbox, f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(
            ["bash", "-c", shell, "bash", *command],
            pass_fds=(from_us, to_us),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(from_us)
        os.close(to_us)
        self.pipe = to_browser, from_browser
        self.unread = b""
        self.number = 0
        self.events: list[dict[str, Any]] = []
        self.session: str | None = None
        pages = [
            page for page in self("Target.getTargets")["targetInfos"] if page["type"] == "page"
        ]
        attached = self("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self(f"{domain}.enable")
        # A browser that keeps what it loads for us stops while it decodes a large page once more.
        self("Network.enable", maxTotalBufferSize=0, maxResourceBufferSize=0)

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of one command; what happens meanwhile is kept in `events`."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.pipe[0], json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self.unread:
            piece = os.read(self.pipe[1], 1 << 20)
            assert piece, "the browser has gone"
            self.unread += piece
        message, self.unread = self.unread.split(b"\0", 1)
        return json.loads(message)

    def open(self, path: Path, *, width: int = 1000, height: int = 800, dark: bool = False) -> None:
        """Load a file and wait until it is there."""
        self.events.clear()
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", features=[scheme])
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1}
        self("Emulation.setDeviceMetricsOverride", mobile=False, **metrics)
        self("Page.navigate", url=path.resolve().as_uri())
        while not self._seen("Page.loadEventFired"):
            self.events.append(self._receive())

    def run(self, script: str) -> Any:
        """The value of an expression on the page; a promise is awaited."""
        answer = self("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, script: str, seconds: float = 15.0) -> None:
        """Wait until an expression on the page is true."""
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, f"never came true: {script}"
            time.sleep(0.02)

    def point(self, selector: str, x: float = 0.5, y: float = 0.5, *, click: bool = False) -> None:
        """Move the pointer to a place, 0 to 1, in the first such element; and click there."""
        element = f"document.querySelector({json.dumps(selector)})"
        # A page that is still scrolling would hide the tooltip after the pointer has come.
        scrolled = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        self.run(f"{element}.scrollIntoView({{block: 'center', behavior: 'instant'}}), {scrolled}")
        box = self.run(f"{element}.getBoundingClientRect().toJSON()")
        at = {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]}
        self("Input.dispatchMouseEvent", type="mouseMoved", **at)
        for kind in ("mousePressed", "mouseReleased") if click else ():
            self("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **at)

    def wheel(self, x: float, y: float, turn: float, *, control: bool = False) -> None:
        """Turn the wheel at a place of the window, away from the reader where `turn` is below 0."""
        wheel = {"deltaX": 0, "deltaY": turn, "modifiers": 2 if control else 0}
        self("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, **wheel)

    def touch(self, selector: str) -> None:
        """Tap the middle of the first such element with a finger."""
        self("Emulation.setTouchEmulationEnabled", enabled=True)
        element = f"document.querySelector({json.dumps(selector)})"
        scrolled = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        self.run(f"{element}.scrollIntoView({{block: 'center', behavior: 'instant'}}), {scrolled}")
        box = self.run(f"{element}.getBoundingClientRect().toJSON()")
        at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        self("Input.dispatchTouchEvent", type="touchStart", touchPoints=[at])
        self("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        self("Emulation.setTouchEmulationEnabled", enabled=False)

    def press(self, key: str) -> None:
        # Chromium closes a dialog on the code of the key, not on its name.
        code = {"Escape": 27}.get(key, 0)
        for kind in ("rawKeyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code)

    def text(self, selector: str) -> str:
        return self.run(f"document.querySelector({json.dumps(selector)}).innerText")

    def picture(self) -> np.ndarray:
        """What the window shows, [height, width, 3]."""
        data = base64.b64decode(self("Page.captureScreenshot", format="png")["data"])
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))

    def requests(self) -> list[str]:
        """The address of everything that the page asked for since it was opened."""
        sent = self._seen("Network.requestWillBeSent")
        return [event["params"]["request"]["url"] for event in sent]

    def complaints(self) -> list[dict[str, Any]]:
        """Errors of scripts and messages of the browser since the page was opened."""
        return self._seen("Runtime.exceptionThrown") + self._seen("Log.entryAdded")

    def _seen(self, method: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event.get("method") == method]

    def close(self) -> None:
        self.session = None
        self("Browser.close")
        self.process.wait(timeout=20)
        for end in self.pipe:
            os.close(end)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None or shutil.which("bash") is None:
        pytest.skip("no Chromium is installed")
    opened = Browser(program, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()
