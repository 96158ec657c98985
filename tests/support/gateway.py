"""A real gateway process with the development PKI, and channels to it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Protocol

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2  # type: ignore[import-untyped] # has no types
from grpc_status import rpc_status  # type: ignore[import-untyped] # likewise

from jobworker.api.v1.job_worker_service_pb2_grpc import JobWorkerServiceStub
from jobworker.settings import schema
from support import certs
from support.waiting import until

DEADLINE = 60


def settings(state_dir: str, files: certs.Files | None = None, listen: str = "127.0.0.1:0") -> schema.Settings:
    """Settings of a gateway; by default with the development PKI's server."""
    files = files or certs.dev_pki().files("server")
    return schema.Settings(state_dir, listen, schema.TlsSettings(files.ca, files.cert, files.key))


class Gateway:
    """A running gateway.

    Attributes:
        address: HOST:PORT.
    """

    def __init__(self, directory: str, wanted: schema.Settings, **environment: str) -> None:
        self._environment = environment
        self._log_path = os.path.join(directory, "gateway.log")
        self._settings_path = os.path.join(directory, "gateway.json")
        schema.write(wanted, self._settings_path)
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        reading, writing = os.pipe()
        command = [sys.executable, "-m", "jobworker.gateway", "--settings", self._settings_path]
        # Whatever these tests tell their own grpc, the gateway must see to itself.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
        with open(self._log_path, "ab") as log:
            process = subprocess.Popen(
                [*command, "--ready-fd", str(writing)],
                stderr=log,
                pass_fds=(writing,),
                start_new_session=True,
                env=environment | self._environment,
            )
        os.close(writing)
        with open(reading) as ready:
            self.address = ready.read().strip()
        return process

    def channel(self, files: certs.Files | None = None, name: str = "writer") -> grpc.Channel:
        """A connection with these files, or those of a user of the development PKI."""
        return channel(self.address, files or certs.dev_pki().files(name))

    @contextlib.contextmanager
    def stub(self, files: certs.Files | None = None, name: str = "writer") -> Iterator[JobWorkerServiceStub]:
        with self.channel(files, name) as connection:
            yield JobWorkerServiceStub(connection)

    def log(self) -> str:
        with open(self._log_path) as file:
            return file.read()

    def calls(self, method: str) -> list[dict[str, Any]]:
        """What the log says of the calls of a method, by the end of its name."""
        lines = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == "call" and line["method"].endswith(method)]

    def wait_for_calls(self, method: str, number: int) -> None:
        """Wait until so many calls of a method have ended. The log is a file, which nobody notifies of."""
        deadline = time.monotonic() + DEADLINE
        while len(self.calls(method)) < number:
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)

    def wait_for_log(self, text: str) -> None:
        until(lambda: text in self.log(), True)

    def open_files(self) -> list[str]:
        directory = f"/proc/{self.process.pid}/fd"
        paths = []
        for name in os.listdir(directory):
            with contextlib.suppress(FileNotFoundError):
                paths.append(os.readlink(os.path.join(directory, name)))
        return paths

    def memory_kib(self, field: str = "VmRSS") -> int:
        with open(f"/proc/{self.process.pid}/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(f"{field}:"))

    def stop(self) -> int:
        """Stop it; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            # A test that has failed may have left it stopped.
            self.process.send_signal(signal.SIGCONT)
        return self.process.wait(DEADLINE)


@contextlib.contextmanager
def gateway(
    directory: str | os.PathLike[str], wanted: schema.Settings | None = None, **environment: str
) -> Iterator[Gateway]:
    """A gateway whose files are in `directory`; without settings there is no supervisor behind it."""
    path = str(directory)
    running = Gateway(path, wanted or settings(path), **environment)
    try:
        assert running.address, running.log()
        yield running
    finally:
        status = running.stop()
        assert status == 0, f"exit status {status}\n{running.log()}"


def refusal(directory: str | os.PathLike[str], wanted: schema.Settings, **environment: str) -> str:
    """What a gateway says that does not start with these settings."""
    running = Gateway(str(directory), wanted, **environment)
    assert running.stop() == 1, running.log()
    assert not running.address
    return running.log()


def behind(root_settings: schema.Settings, **changes: Any) -> schema.Settings:
    """Settings of a gateway for a supervisor that was started with `root_settings`."""
    own = settings(root_settings.state_dir)
    return replace(root_settings, listen=own.listen, tls=own.tls, **changes)


def channel(address: str, files: certs.Files) -> grpc.Channel:
    return grpc.secure_channel(address, credentials(files))


def credentials(files: certs.Files, *, certificate: bool = True) -> grpc.ChannelCredentials:
    ca, cert, key = (_read(path) for path in (files.ca, files.cert, files.key))
    return grpc.ssl_channel_credentials(ca, *((key, cert) if certificate else ()))


@contextlib.contextmanager
def silence() -> Iterator[Iterator[bytes]]:
    """Requests of a client that keeps its call open and sends none."""
    reading, writing = os.pipe()
    with open(reading, "rb") as pipe, open(writing, "wb"):
        yield iter(lambda: pipe.read(1), b"")


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def code(error: Any) -> str:
    name: str = error.code().name
    return name


def detail(error: Any, message: Message) -> Any:
    """The status's detail of the message's type."""
    status = rpc_status.from_call(error)
    assert status is not None
    for packed in status.details:
        if packed.Unpack(message):
            return message
    return None


def reason(error: Any) -> str:
    info = detail(error, error_details_pb2.ErrorInfo())
    return str(info.reason) if info else ""


def violated_field(error: Any) -> str:
    bad_request = detail(error, error_details_pb2.BadRequest())
    return str(bad_request.field_violations[0].field) if bad_request else ""


class Logging(Protocol):
    """A gateway, or what has one."""

    def log(self) -> str: ...


def metrics(running: Logging) -> dict[str, float]:
    """What a gateway with `plain_http` tells of itself, by name with labels."""
    serving = next(json.loads(line) for line in running.log().splitlines() if '"serving"' in line)
    with urllib.request.urlopen(f"http://{serving['metrics']}/metrics", timeout=DEADLINE) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}
