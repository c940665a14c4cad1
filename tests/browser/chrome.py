"""A headless Chromium through its debugging pipe: pages at any size and colour scheme, their errors, and what they look like."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
# The browser reads its orders from 3 and answers on 4.
PLACE = """
import os, sys
from fcntl import F_DUPFD, fcntl
a, b = (fcntl(int(n), F_DUPFD, 10) for n in sys.argv[1:3])
os.dup2(a, 3)
os.dup2(b, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def find() -> str | None:
    """The browser of this machine."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Chrome:
    """One tab. ``problems``: console errors, exceptions and violated policies since the last :meth:`open`; ``asked``: addresses of
    requests, without those that the page's own policy stopped."""

    def __init__(self, program: str, profile: Path) -> None:
        theirs_in, self.to = os.pipe()
        self.back, theirs_out = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-c", PLACE, str(theirs_in), str(theirs_out), program, *QUIET, f"--user-data-dir={profile}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(theirs_in, theirs_out),
            start_new_session=True,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.number, self.rest, self.session = 0, b"", ""
        self.events: list[dict[str, Any]] = []
        target = next(t["targetId"] for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, *, timeout: float = 120.0, **params: Any) -> dict[str, Any]:
        """The browser's answer. Events that come before it are kept."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next(timeout)
            if found.get("id") == self.number:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']['message']}")
                return found["result"]
            self.events.append(found)

    def _next(self, timeout: float) -> dict[str, Any]:
        end = time.monotonic() + timeout
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.back], [], [], max(0.0, end - time.monotonic()))
            part = os.read(self.back, 1 << 20) if ready else b""
            if not part:
                raise TimeoutError("the browser did not answer")
            self.rest += part
        text, _, self.rest = self.rest.partition(b"\0")
        return json.loads(text)

    def open(
        self, page: Path, *, width: int = 1280, height: int = 900, dark: bool = False, paper: bool = False, script: bool = True
    ) -> None:
        """Load a file, and wait until its pictures are decoded."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media="print" if paper else "", features=[scheme])
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        self._wait("Page.loadEventFired")
        if script:
            self.ask("Promise.all([...document.images].map(i => i.decode().catch(() => 0)))")

    def _wait(self, event: str, timeout: float = 120.0) -> None:
        while not any(e.get("method") == event for e in self.events):
            self.events.append(self._next(timeout))

    @property
    def problems(self) -> list[str]:
        self.call("Runtime.evaluate", expression="0")  # what was said until now has arrived when this returns
        out = []
        for event in self.events:
            params = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                out.append(str(params["exceptionDetails"].get("text")))
            elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                out.append(params["entry"]["text"])
            elif event.get("method") == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
                out.append(str(params["args"]))
            elif event.get("method") == "Page.javascriptDialogOpening":
                out.append(f"dialog: {params['message']}")
        return out

    @property
    def asked(self) -> list[str]:
        found = [(e.get("method"), e.get("params", {})) for e in self.events]
        blocked = {p["requestId"] for name, p in found if name == "Network.loadingFailed" and p.get("blockedReason") == "csp"}
        urls = [p["request"]["url"] for name, p in found if name == "Network.requestWillBeSent" and p["requestId"] not in blocked]
        return [u for u in urls if not u.startswith("data:")]

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression; promises are awaited."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def move(self, x: float, y: float) -> None:
        """The mouse, in pixels of the window."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """A screenshot of the window, or of the whole page."""
        more: dict[str, Any] = {}
        if whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            more = {"captureBeyondViewport": True, "clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png", **more)["data"]))

    def pdf(self, path: Path) -> None:
        """The page as it is printed."""
        path.write_bytes(base64.b64decode(self.call("Page.printToPDF", printBackground=False)["data"]))

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.session = ""
            self.call("Browser.close", timeout=10)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.to)
        os.close(self.back)


@contextlib.contextmanager
def chrome() -> Iterator[Chrome]:
    """A browser with an empty profile. Raises FileNotFoundError where there is none."""
    program = find()
    if program is None:
        raise FileNotFoundError(f"none of {', '.join(NAMES)} is in PATH")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        one = Chrome(program, Path(profile))
        try:
            yield one
        finally:
            one.close()
