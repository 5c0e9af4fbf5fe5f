"""Headless Chromium for tests, spoken to over a pipe (DevTools protocol): no driver, no port.

    with Browser(tmp_path) as browser:
        browser.open(page, width=1280, height=900)
        browser.run("document.title")           # the value of an expression
        browser.errors                          # what went to the console as an error
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser",
                                                "google-chrome"))), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe")
PATIENCE = 60       # seconds


class Browser:
    """One tab."""

    def __init__(self, profile: Path):
        self.profile = profile
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.asked = 0
        self.buffer = b""

    def __enter__(self):
        to_browser, self.write_end = os.pipe()
        self.read_end, from_browser = os.pipe()

        def place():        # the protocol speaks on descriptors 3 and 4
            os.dup2(to_browser, 103)
            os.dup2(from_browser, 104)
            os.dup2(103, 3)
            os.dup2(104, 4)
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={self.profile}", "about:blank"]
        self.process = subprocess.Popen(command, preexec_fn=place, close_fds=False,  # noqa: PLW1509
                                        stderr=subprocess.DEVNULL)
        os.close(to_browser)
        os.close(from_browser)
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = None
        self.session = self.send("Target.attachToTarget", targetId=target,
                                 flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.write_end)
        os.close(self.read_end)

    session = None

    def send(self, method: str, **params) -> dict:
        self.asked += 1
        message = {"id": self.asked, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write_end, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE
        while True:
            answer = self.receive(deadline)
            if answer.get("id") == self.asked:
                assert "error" not in answer, answer
                return answer["result"]
            self.note(answer)

    def receive(self, deadline: float) -> dict:
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.read_end], [], [], deadline - time.monotonic())
            assert ready, "the browser does not answer"
            self.buffer += os.read(self.read_end, 1 << 20)
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def note(self, event: dict) -> None:
        params = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"])[:500])
        if event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    def run(self, expression: str):
        result = self.send("Runtime.evaluate", expression=expression, awaitPromise=True,
                           returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def open(self, page: Path, width: int = 1280, height: int = 900) -> float:
        """Waits until the page says that it is drawn, and returns the seconds that it took."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=width < 600)
        started = time.monotonic()
        self.send("Page.navigate", url=page.resolve().as_uri())
        self.wait()
        return time.monotonic() - started

    def wait(self) -> None:
        """Until the page says that it is drawn."""
        started = time.monotonic()
        while self.run("document.body && document.body.dataset.ready") != "yes":
            assert time.monotonic() < started + PATIENCE, self.errors
            time.sleep(0.05)

    def key(self, name: str) -> None:
        self.run(f"document.body.dispatchEvent(new KeyboardEvent('keydown', "
                 f"{{key: {name!r}, bubbles: true}}))")

    def picture(self, file: Path, whole: bool = False) -> None:
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(data["data"]))
