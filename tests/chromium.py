"""Drives Debian's Chromium without a screen, by the DevTools protocol: JSON on a pipe.

https://chromedevtools.github.io/devtools-protocol/ describes what `call` can be given.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support import DEADLINE

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")  # of the command
# Processes and pages that are kept for later: they only cost time.
NEEDLESS = ("BackForwardCache", "SpareRendererForSitePerProcess", "ProactivelySwapBrowsingInstance")
OPTIONS = [
    "--headless",
    "--remote-debugging-pipe",
    "--no-sandbox",  # it can't be made as root, nor in many a container
    "--disable-gpu",
    "--disable-dev-shm-usage",  # in a container that is small
    # No traffic of its own, and nothing that asks the user.
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-quic", "--no-first-run", "--no-default-browser-check"),
    # A page that isn't in sight is slowed down; in tests none is in sight.
    *("--disable-background-timer-throttling", "--disable-renderer-backgrounding"),
    "--disable-backgrounding-occluded-windows",
    "--pull-to-refresh=1",  # as on Android
    # What only costs time: a window that nobody asked for.
    *("--no-startup-window", "--disable-extensions"),
    f"--disable-features={','.join(NEEDLESS)}",
]
# Chromium reads commands at descriptor 3 and writes at 4; one socket does for both.
LAUNCHER = """
import os, sys
for number in 3, 4:
    os.dup2(int(sys.argv[1]), number)
os.execv(sys.argv[2], sys.argv[2:])
"""
KEYS = {"Enter": (13, "\r"), "Tab": (9, ""), "Escape": (27, "")}
KEYS.update(ArrowUp=(38, ""), ArrowDown=(40, ""))
SHIFT = 8
# What the page has done against its own policy, and whether anything was thrown.
WATCH = """
window.faults = [];
addEventListener("securitypolicyviolation", (event) =>
  faults.push(`policy: ${event.violatedDirective} ${event.blockedURI}`));
addEventListener("error", (event) => faults.push(event.message));
addEventListener("unhandledrejection", (event) => faults.push(`${event.reason}`));
"""


class Browser:
    """A Chromium process with one window, as each takes long to open. It is used again by a page of
    another room, whose origin is another, so that nothing is left of the one before."""

    def __init__(self, folder: Path) -> None:
        command = next(filter(None, map(shutil.which, NAMES)), None)
        if not command:
            pytest.skip("Chromium is not installed")
        self.sock, theirs = socket.socketpair()
        options = [*OPTIONS, f"--user-data-dir={folder}"]
        with theirs, open(folder / "log", "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", LAUNCHER, str(theirs.fileno()), command, *options],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.buffer = b""
        self.calls = 0
        self.page: Page | None = None
        try:
            self.window = self.call("Target.createTarget", url="about:blank")["targetId"]
        except (AssertionError, OSError) as error:  # as where a container lacks what it needs
            self.kill()
            pytest.skip(f"Chromium does not start here: {error}")

    def call(self, method: str, session: str = "", **given: Any) -> Any:
        """Has the browser do something; returns its answer."""
        self.calls += 1
        message: dict[str, Any] = {"id": self.calls, "method": method, "params": given}
        if session:
            message["sessionId"] = session
        self.sock.sendall(json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + DEADLINE
        while True:
            answer = self.receive(deadline, method)
            if answer.get("id") == self.calls:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            if self.page and answer.get("sessionId") == self.page.session:
                self.page.note(answer["method"], answer["params"])

    def receive(self, deadline: float, method: str) -> Any:
        """Returns the next message, an answer or an event."""
        while b"\0" not in self.buffer:
            rest = max(0.0, deadline - time.monotonic())
            assert select.select([self.sock], [], [], rest)[0], f"no answer to {method}"
            data = self.sock.recv(1 << 20)
            assert data, "the browser has ended"
            self.buffer += data
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def kill(self) -> None:
        with self.sock:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Page:
    """What is set for a page ends with its session."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser
        attached = browser.call("Target.attachToTarget", targetId=browser.window, flatten=True)
        self.session = attached["sessionId"]
        self.requests: list[str] = []  # URLs that the page has asked for
        self.complaints: list[str] = []  # what the browser has against the page
        browser.page = self
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")
        self.before_load(WATCH)

    def call(self, method: str, **given: Any) -> Any:
        return self.browser.call(method, self.session, **given)

    def note(self, event: str, given: Any) -> None:
        """Takes what the browser tells of the page."""
        if event == "Network.requestWillBeSent":
            self.requests.append(given["request"]["url"])
        elif event == "Network.webSocketCreated":
            self.requests.append(given["url"])
        elif event == "Log.entryAdded" and given["entry"]["source"] != "network":
            self.complaints.append(given["entry"]["text"])
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(str(given["exceptionDetails"]))

    def before_load(self, script: str) -> None:
        """Runs a script in each document before its own."""
        self.call("Page.addScriptToEvaluateOnNewDocument", source=script)

    def open(self, url: str) -> None:
        answer = self.call("Page.navigate", url=url)
        assert "errorText" not in answer, answer["errorText"]
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    def value(self, expression: str) -> Any:
        """Returns what a JavaScript expression, or the promise of it, comes to."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, condition: str) -> Any:
        """Waits until a JavaScript expression is true, and returns its value."""
        deadline = time.monotonic() + DEADLINE
        while True:
            value = self.value(condition)
            if value:
                return value
            if time.monotonic() > deadline:
                text = self.value("document.body.innerText").strip()[-300:]
                raise AssertionError(f"did not happen: {condition}; the page shows:\n{text}")
            time.sleep(0.02)

    # What a person does

    def type(self, text: str) -> None:
        """Puts text where the cursor is, in one piece, as a paste or a phone's keyboard does."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, modifiers: int = 0) -> None:
        code, text = KEYS[key]
        given = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **given)
        self.call("Input.dispatchKeyEvent", type="keyUp", **given)

    def click(self, selector: str) -> None:
        """Clicks, or taps, in the middle of an element."""
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        at = self.value(f"(box => [box.x + box.width / 2, box.y + box.height / 2])({box})")
        given = {"x": at[0], "y": at[1], "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, **given)

    def compose(self, text: str) -> None:
        """Types text that isn't final yet, as phones do with the last word, or Korean keyboards."""
        caret = len(text)
        self.call("Input.imeSetComposition", text=text, selectionStart=caret, selectionEnd=caret)

    def turn_wheel(self, down: int) -> None:
        given = {"x": 200, "y": 300, "deltaX": 0, "deltaY": down}
        self.call("Input.dispatchMouseEvent", type="mouseWheel", **given)

    def pull(self, start: int, end: int) -> None:
        """Moves a finger down, or up."""
        for y in range(start, end, 30 if start < end else -30):
            kind = "touchStart" if y == start else "touchMove"
            self.call("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": 200, "y": y}])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    # Where the page is shown

    def resize(self, width: int, height: int, phone: bool = False) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1}
        self.call("Emulation.setDeviceMetricsOverride", mobile=phone, **size)
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)

    def hide(self, hidden: bool) -> None:
        """Minimizes the page's window, or shows it again."""
        target = self.browser.window
        window = self.browser.call("Browser.getWindowForTarget", targetId=target)["windowId"]
        bounds = {"windowState": "minimized" if hidden else "normal"}
        self.browser.call("Browser.setWindowBounds", windowId=window, bounds=bounds)
        self.wait_for(f"document.hidden === {json.dumps(hidden)}")

    def prefer(self, feature: str, value: str) -> None:
        """Has the user prefer something that CSS can ask for."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": feature, "value": value}])

    def faults(self) -> list[str]:
        """Returns what the page has done against its policy, and its errors."""
        return [*self.complaints, *self.value("faults")]

    def close(self) -> None:
        """Leaves the window to the next page; one that was hidden is in sight again."""
        self.hide(False)
        self.call("Page.navigate", url="about:blank")
        self.browser.call("Target.detachFromTarget", sessionId=self.session)
        self.browser.page = None
