"""The keeper's program with a supervisor that does what a test has written, and needs no root."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jobworker
from support.service_manager import ServiceManager
from support.waiting import until

JOB = "k7f3-9m2q-x4tz-b1cd"
DEADLINE = 60

# The link, what is said over it, and the test's directory; `lives` is how many supervisors there were before.
_BEGIN = """
import os, sys
sys.path.append({path!r})
import select, signal, socket, time
from jobworker.wire import keeping, sockets
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
link = socket.socket(fileno=int(options["--link-fd"]))
os.chdir({directory!r})
lives = len([name for name in os.listdir() if name.startswith("life")])
open("life%d" % lives, "w").write(str(os.getpid()))

def say(kind, job_id="", fds=()):
    sockets.send(link, keeping.pack(kind, job_id), fds)

def take_back():
    say(keeping.HAND_BACK)
    held = []
    while True:
        data, fds, _ = sockets.receive(link, keeping.SIZE)
        kind, job_id, _ = keeping.unpack(data)
        if kind == keeping.HELD_ALL:
            return held
        held.append((job_id, fds.take()))

def tell(name, what=""):
    open(name + ".new", "w").write(str(what))
    os.rename(name + ".new", name)

def wait_for(name):
    while not os.path.exists(name):
        time.sleep(0.002)
"""


class BareKeeper:
    """A running keeper.

    Args:
        directory: where it and its supervisors run.
        script: what each of its supervisors does.
        manager: the service manager that starts it.
        python: the interpreter that runs it.
        changes: a file of the keeper's program, what stands there, and what is to stand there in place of it.
    """

    def __init__(
        self,
        directory: Path,
        script: str,
        manager: ServiceManager | None = None,
        python: str = sys.executable,
        changes: tuple[tuple[str, str, str], ...] = (),
    ) -> None:
        self.directory = directory
        self.package = directory / "package" / "jobworker"
        leave = shutil.ignore_patterns("__pycache__", "supervisor", "gateway", "api", "client", "cli")
        shutil.copytree(os.path.dirname(jobworker.__file__), self.package, ignore=leave)
        program = self.package / "supervisor" / "__main__.py"
        program.parent.mkdir()
        program.write_text(_BEGIN.format(path=str(self.package.parent), directory=str(directory)) + script)
        for name, old, new in changes:
            path = self.package / "keeper" / name
            assert path.read_text().count(old) == 1
            path.write_text(path.read_text().replace(old, new))
        self.log_path = directory / "keeper.log"
        own = str(self.package / "keeper" / "__main__.py")
        command = [python, "-I", "-S", "-E", own, "--settings", "none"]
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(manager.command(command) if manager else command, stderr=log)

    def log(self) -> str:
        return self.log_path.read_text()

    def wait_for(self, name: str) -> str:
        """Wait until the supervisor has told this; what it has told."""
        path = self.directory / name
        until(path.exists, True, DEADLINE)
        return path.read_text()

    def let(self, name: str) -> None:
        """Let a supervisor that waits for this go on."""
        (self.directory / name).touch()

    def freeze(self) -> None:
        """Have it do nothing until it is let go on."""
        self.process.send_signal(signal.SIGSTOP)
        until(self._state, "T")

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def _state(self) -> str:
        return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def supervisors(self) -> list[int]:
        """The ids of all that it has started."""
        found = sorted(self.directory.glob("life*"), key=lambda path: int(path.name.removeprefix("life")))
        return [int(path.read_text()) for path in found if path.stat().st_size]

    def close(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE)
        for pid in self.supervisors():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def bare_keeper(directory: Path, script: str, *args: Any, **options: Any) -> Iterator[BareKeeper]:
    keeper = BareKeeper(directory, script, *args, **options)
    try:
        yield keeper
    finally:
        keeper.close()
