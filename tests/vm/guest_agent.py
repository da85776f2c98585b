# SPDX-License-Identifier: LGPL-2.1-or-later
"""The test's hand inside the guest: runs what the host asks over a virtio-serial port. Standard library only.

Newline-delimited JSON both ways. Each start says hello with the boot's id and mode. A request names the boot
it is meant for: one that was still in the pipe when its kernel died must not run in the next boot. Every
message begins on a fresh line, since the last one of a crashed kernel may have been cut.
"""

import base64
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PORT_NAME = "org.kdump.test"
PORT_DEADLINE_SEC = 60.0
POLL_SEC = 0.1

Request = dict[str, Any]
Answer = dict[str, Any]


def find_port() -> str:
    """The port's device node, which udev may not have named yet (a capture boot may run without udev)."""
    subprocess.run(["modprobe", "-q", "-a", "virtio_pci", "virtio_console"], check=False)
    deadline = time.monotonic() + PORT_DEADLINE_SEC
    while time.monotonic() < deadline:
        for name in Path("/sys/class/virtio-ports").glob("*/name"):
            if name.read_text().strip() == PORT_NAME:
                return f"/dev/{name.parent.name}"
        time.sleep(POLL_SEC)
    raise SystemExit(f"no virtio port called {PORT_NAME} after {PORT_DEADLINE_SEC:.0f} s")


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def hello() -> Answer:
    return {
        "hello": boot_id(),
        "mode": "capture" if Path("/proc/vmcore").exists() else "production",
        "release": os.uname().release,
        "uptime_sec": float(Path("/proc/uptime").read_text().split()[0]),
    }


def _shell(command: str, timeout_sec: float) -> tuple[int | None, bytes, bytes]:
    """Run and collect; a status of None means that the time was up and the whole process group was killed."""
    with subprocess.Popen(
        ["/bin/sh", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as child:
        try:
            out, err = child.communicate(timeout=timeout_sec)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            out, err = child.communicate()
            return None, out, err
        return child.returncode, out, err


def run(request: Request) -> Answer:
    """Run `command` with sh for at most `timeout_sec`."""
    status, out, err = _shell(request["command"], request["timeout_sec"])
    return {"status": status, "stdout": out.decode(errors="replace"), "stderr": err.decode(errors="replace")}


def until(request: Request) -> Answer:
    """Run `command` again and again until it succeeds; status None if it never did in time.

    Some commands are seconds of work here, which would be taken from what is waited for: they rest thrice as
    long as they took.
    """
    deadline = time.monotonic() + request["timeout_sec"]
    while True:
        began = time.monotonic()
        status, out, err = _shell(request["command"], max(1.0, deadline - began))
        if status != 0 and time.monotonic() < deadline:
            now = time.monotonic()
            time.sleep(min(max(POLL_SEC, 3 * (now - began)), max(deadline - now, 0)))
            continue
        texts = {"stdout": out.decode(errors="replace"), "stderr": err.decode(errors="replace")}
        return {"status": 0 if status == 0 else None, **texts}


def spawn(request: Request) -> Answer:
    """Start `command` and let it be: for what ends the kernel, and with it this process."""
    child = subprocess.Popen(
        ["/bin/sh", "-c", request["command"]], stdin=subprocess.DEVNULL, start_new_session=True
    )
    return {"pid": child.pid}


def read(request: Request) -> Answer:
    """At most `size` bytes of `path` from `offset` on."""
    with open(request["path"], "rb") as file:
        file.seek(request["offset"])
        return {"data": base64.b64encode(file.read(request["size"])).decode()}


def write(request: Request) -> Answer:
    """Put `data` at the end of `path`, or at its beginning when `offset` is 0; folders are made as needed."""
    path = Path(request["path"])
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab" if request["offset"] else "wb") as file:
        file.write(base64.b64decode(request["data"]))
    return {}


OPERATIONS: dict[str, Callable[[Request], Answer]] = {
    "run": run,
    "until": until,
    "spawn": spawn,
    "read": read,
    "write": write,
}


def answer(request: Request) -> Answer:
    """Carry out one request; whatever goes wrong becomes text for the host."""
    try:
        return OPERATIONS[request["op"]](request)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def requests(port: int) -> Iterator[Request]:
    """Whole requests as they come in; a line that is no JSON is the torn end of an earlier boot's."""
    pending = b""
    while chunk := os.read(port, 65536):
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            try:
                request = json.loads(line)
            except ValueError:
                continue
            if isinstance(request, dict):
                yield request


def send(port: int, message: Answer) -> None:
    data = b"\n" + json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(port, data) :]


def main() -> None:
    port = os.open(find_port(), os.O_RDWR | os.O_CLOEXEC)
    send(port, hello())
    for request in requests(port):
        if request.get("boot") == boot_id():
            send(port, {"id": request["id"], **answer(request)})


if __name__ == "__main__":
    main()
