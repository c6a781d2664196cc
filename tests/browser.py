"""Chromium for tests, without a driver: the DevTools protocol over two pipes, so that no port is opened.

with Browser.start() as browser:
    page = browser.open(path, width=390)
    assert page.value("document.title") == "..."
"""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-extensions", "--disable-sync",
    "--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-pipe", "about:blank",
)  # fmt: skip
SECONDS = 60.0


def executable() -> str | None:
    """The browser, where one is installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One running Chromium."""

    def __init__(self, process: subprocess.Popen[bytes], read: int, write: int, folder: Path) -> None:
        self.process, self.read, self.write, self.folder = process, read, write, folder
        self.numbers, self.buffer = itertools.count(1), b""
        self.events: list[dict[str, Any]] = []

    @classmethod
    @contextmanager
    def start(cls) -> Iterator["Browser"]:
        """Run it, and end it with its folder gone."""
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        found = executable()
        assert found is not None
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            # the browser reads file 3 and writes file 4; sh moves them there from where they are
            moved = f'exec 3<&{theirs_in} 4>&{theirs_out}; exec "$@"'
            command = ["bash", "-c", moved, "bash", found, f"--user-data-dir={folder}/profile", *FLAGS]
            with subprocess.Popen(
                command, pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            ) as process:
                os.close(theirs_in)
                os.close(theirs_out)
                browser = cls(process, ours_in, ours_out, Path(folder))
                try:
                    yield browser
                    browser.call("Browser.close")
                finally:
                    process.kill() if process.poll() is None and not browser._ends() else None
                    os.close(ours_in)
                    os.close(ours_out)

    def _ends(self) -> bool:
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            return False
        return True

    def call(self, method: str, *, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """One command and its answer; events that come in between are kept."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def wait(self, method: str, session: str) -> dict[str, Any]:
        """The next event of that name, taken out of those that were kept."""
        while True:
            for event in self.events:
                if event.get("method") == method and event.get("sessionId") in (session, None):
                    self.events.remove(event)
                    return event["params"]
            self.events.append(self._next())

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + SECONDS
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.read], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            data = os.read(self.read, 1 << 20)
            assert data, "the browser is gone"
            self.buffer += data
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def open(
        self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False, scripts: bool = True
    ) -> "Page":
        """A file in a new tab, loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        phone = width < 600
        page.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", features=[scheme])
        page.go(path.resolve().as_uri())
        return page


class Page:
    """One tab."""

    def __init__(self, browser: Browser, session: str) -> None:
        self.browser, self.session = browser, session

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.browser.call(method, session=self.session, **parameters)

    def go(self, address: str) -> None:
        """Load an address to its end."""
        self.call("Page.navigate", url=address)
        self.browser.wait("Page.loadEventFired", self.session)

    def value(self, expression: str) -> Any:
        """What a line of JavaScript gives, as JSON."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """One key down and up: Tab, Enter, ArrowLeft."""
        codes = {"Tab": 9, "Enter": 13, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, " ": 32}
        text = {"text": {"Enter": "\r"}.get(key, key)} if key in ("Enter", " ") else {}
        common = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
        self.call("Input.dispatchKeyEvent", type="keyDown", **common, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def type(self, text: str) -> None:
        """Text into what has the focus."""
        self.call("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        """The middle of an element, with the mouse; it is scrolled to first."""
        box = self.value(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center', "
            "behavior: 'instant'}); const b = e.getBoundingClientRect(); "
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def errors(self) -> list[str]:
        """Everything that the console would show as an error, and every load that failed."""
        self.value("1")  # what was logged before has come by now
        mine = [e for e in self.browser.events if e.get("sessionId") == self.session]
        found = [str(e["params"]["exceptionDetails"]) for e in mine if e["method"] == "Runtime.exceptionThrown"]
        found += [
            str(e["params"]["args"]) for e in mine
            if e["method"] == "Runtime.consoleAPICalled" and e["params"]["type"] in ("error", "warning", "assert")
        ]  # fmt: skip
        found += [
            f"{e['params']['entry']['text']} {e['params']['entry'].get('url', '')}" for e in mine
            if e["method"] == "Log.entryAdded" and e["params"]["entry"]["level"] in ("error", "warning")
        ]  # fmt: skip
        failed = [e["params"] for e in mine if e["method"] == "Network.loadingFailed"]
        return found + [str(one) for one in failed if not one.get("canceled")]  # as when a link turns out a download

    def requests(self) -> list[str]:
        """Every address that was asked for, data addresses apart."""
        mine = [e for e in self.browser.events if e.get("sessionId") == self.session]
        urls = [e["params"]["request"]["url"] for e in mine if e["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith("data:")]

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """A PNG of the whole page."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def pdf(self, path: Path) -> None:
        """What printing gives, on A4."""
        data = self.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, printBackground=False)["data"]
        path.write_bytes(base64.b64decode(data))
