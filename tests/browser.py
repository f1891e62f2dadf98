"""Headless Chromium, driven over its own protocol. Debian has it: `apt-get install chromium`."""

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

from mindgw import clock

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
#: Seconds that anything may take on a loaded machine.
PATIENCE = 60.0
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-default-apps", "--no-proxy-server", "--remote-debugging-port=0",
)  # fmt: skip


class Tab:
    """One page in a browser."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._session = ""
        self._last = 0
        #: Addresses that were asked for, and what the page complained of.
        self.asked: list[str] = []
        self.complaints: list[str] = []
        target = self._do("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._do("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._do(f"{domain}.enable")

    def open(self, url: str) -> None:
        """Returns once the page and its script are there."""
        self._do("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """What a script comes to. Raises AssertionError with what it threw."""
        done = self._do("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def until(self, script: str) -> Any:
        """The first truthy value of a script."""
        end = clock.monotonic() + PATIENCE
        while not (found := self.run(script)):
            assert clock.monotonic() < end, f"not in time: {script}; the page: {self.run('document.body.innerText')}"
        return found

    def submit(self, form: str, **values: str) -> None:
        """Fills the inputs of a form by their ids, and sends it."""
        for id, value in values.items():
            self.run(f"document.getElementById({json.dumps(id)}).value = {json.dumps(value)}")
        self.run(f"document.getElementById({json.dumps(form)}).requestSubmit()")

    def picture(self, file: Path) -> None:
        """A screenshot, as PNG."""
        file.write_bytes(base64.b64decode(self._do("Page.captureScreenshot")["data"]))

    def _do(self, method: str, **params: Any) -> dict[str, Any]:
        self._last += 1
        said: dict[str, Any] = {"id": self._last, "method": method, "params": params}
        self._socket.send(json.dumps(said | ({"sessionId": self._session} if self._session else {})))
        while True:
            heard = json.loads(self._socket.recv(timeout=PATIENCE))
            if heard.get("id") == self._last:
                assert "error" not in heard, heard
                return heard["result"]
            self._note(heard.get("method", ""), heard.get("params", {}))

    def _note(self, event: str, params: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])
        elif event == "Log.entryAdded":
            self.complaints.append(f"{params['entry']['source']}: {params['entry']['text']}")
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))


@contextmanager
def tab(profile: Path) -> Iterator[Tab]:
    """A browser with an empty profile, and one page in it."""
    assert PROGRAM is not None
    browser = subprocess.Popen(
        [PROGRAM, *_FLAGS, f"--user-data-dir={profile}"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        assert browser.stderr is not None
        address = next(found[1] for line in browser.stderr if (found := re.search(rb"DevTools listening on (ws://\S+)", line)))
        with connect(address.decode(), max_size=None, compression=None, proxy=None) as socket:
            yield Tab(socket)
    finally:
        browser.terminate()
        browser.wait(PATIENCE)
        if browser.stderr is not None:
            browser.stderr.close()
