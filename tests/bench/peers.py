"""Who runs a command: the agent, and the programs it is compared with."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import agents
from bench.bundle import Bundles
from bench.namespace import MountNamespace, cgroup2_in_the_way
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.api.v1.job_worker_service_pb2_grpc import JobWorkerServiceStub
from support.agent import DEADLINE, Agent

if TYPE_CHECKING:
    # The types know it, the module does not.
    from jobworker.api.v1.job_worker_service_pb2_grpc import JobWorkerServiceAsyncStub

Command = Sequence[str]
Wait = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Lives:
    """How many jobs lived from their start to their end, and how long all of that took."""

    count: int
    seconds: float


class Peer(ABC):
    name: str

    @abstractmethod
    def start(self, command: Command) -> Wait:
        """Ask for a start and return at once; the result waits for the answer."""

    @abstractmethod
    def live(self, command: Command, clients: int, seconds: float) -> Lives:
        """For so long, so many clients run the command again and again, each once the last one has ended."""


class AgentPeer(Peer):
    """Start over mutual TLS, on connections that are up; in a sandbox other than the default one, where named."""

    name = "jobworker"

    def __init__(self, agent: Agent, service: JobWorkerServiceStub, sandbox: str = "") -> None:
        if sandbox:
            self.name = f"jobworker, {sandbox}"
        self._agent = agent
        self._sandbox = sandbox
        self._service = service

    def start(self, command: Command) -> Wait:
        answer = self._service.Start.future(agents.start_request(command, self._sandbox))
        return lambda: answer.result(DEADLINE)

    def live(self, command: Command, clients: int, seconds: float) -> Lives:
        return asyncio.run(self._live(agents.start_request(command, self._sandbox), clients, seconds))

    async def _live(self, request: pb.StartRequest, clients: int, seconds: float) -> Lives:
        async with agents.async_stubs(self._agent, clients) as stubs:
            begin = time.monotonic()
            counts = await asyncio.gather(*(_lives(stub, request, begin + seconds) for stub in stubs))
            return Lives(sum(counts), time.monotonic() - begin)


async def _lives(stub: JobWorkerServiceAsyncStub, request: pb.StartRequest, deadline: float) -> int:
    """Run jobs one after the other; the end of a job's output is that of the job."""
    count = 0
    while time.monotonic() < deadline:
        job = (await stub.Start(request)).job
        async for _ in stub.Stream(pb.StreamRequest(job_id=job.id, follow=True)):
            pass
        count += 1
    return count


class ProgramPeer(Peer):
    """A program that is given the command and stays until it has ended."""

    def __init__(self, name: str, environment: dict[str, str] | None = None) -> None:
        self.name = name
        self._environment = os.environ | (environment or {})

    def argv(self, command: Command) -> list[str]:
        """The program with its options and the command."""
        return list(command)

    def _spawn(self, argv: Sequence[str]) -> int:
        redirect = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1)]
        return os.posix_spawnp(argv[0], list(argv), self._environment, file_actions=redirect)

    def run(self, argv: Sequence[str]) -> None:
        self._wait(self._spawn(argv))

    def _wait(self, pid: int) -> None:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status:
            raise ChildProcessError(f"{self.name} ended with {status}")

    def start(self, command: Command) -> Wait:
        pid = self._spawn(self.argv(command))
        return lambda: self._wait(pid)

    def live(self, command: Command, clients: int, seconds: float) -> Lives:
        self.run(self.argv(command))
        begin = time.monotonic()
        with ThreadPoolExecutor(clients) as pool:
            running = [pool.submit(self._lives, command, begin + seconds) for _ in range(clients)]
            return Lives(sum(lives.result() for lives in running), time.monotonic() - begin)

    def _lives(self, command: Command, deadline: float) -> int:
        count = 0
        while time.monotonic() < deadline:
            self.run(self.argv(command))
            count += 1
        return count


class TaskSpooler(ProgramPeer):
    """tsp, whose server keeps the output in files, as the agent does; as many slots as there are clients."""

    def __init__(self, directory: str, slots: int) -> None:
        where = {"TS_SOCKET": os.path.join(directory, "tsp.sock"), "TMPDIR": directory, "TS_MAXFINISHED": "100"}
        super().__init__("tsp", where)
        self.run(["tsp", "-S", str(slots)])

    def argv(self, command: Command) -> list[str]:
        return ["tsp", "-f", *command]

    def close(self) -> None:
        self.run(["tsp", "-K"])


class Oci(ProgramPeer):
    """crun or runc, with a lean bundle: fewer namespaces than `spec` makes, one limit, as the agent's default."""

    def __init__(self, program: str, bundles: Bundles, namespace: MountNamespace | None = None) -> None:
        super().__init__(f"{program} run")
        self._bundles = bundles
        self._program = (program, "--root", bundles.state_dir(program))
        self._namespace = namespace

    def argv(self, command: Command) -> list[str]:
        return [*self._program, "run", "--bundle", self._bundles.bundle(command), self._bundles.container_id()]

    def _spawn(self, argv: Sequence[str]) -> int:
        with self._namespace.entered() if self._namespace else contextlib.nullcontext():
            return super()._spawn(argv)


class SystemdRun(ProgramPeer):
    """systemd-run --scope."""

    def __init__(self) -> None:
        super().__init__("systemd-run --scope")

    def argv(self, command: Command) -> list[str]:
        return ["systemd-run", "--quiet", "--scope", "--collect", *command]


@contextlib.contextmanager
def all_peers(agent: Agent, directory: str, clients: int) -> Iterator[list[Peer]]:
    """The agent, then a plain process, then every peer that this machine has; `directory` is visible to all."""
    with contextlib.ExitStack() as stack:
        peers: list[Peer] = [AgentPeer(agent, stack.enter_context(agents.stub(agent))), ProgramPeer("sh")]
        if shutil.which("tsp"):
            spooler = TaskSpooler(directory, clients)
            stack.callback(spooler.close)
            peers.append(spooler)
        if os.geteuid() == 0:
            peers += _containers(stack, directory)
        if _systemd_runs():
            peers.append(SystemdRun())
        yield peers


def _containers(stack: contextlib.ExitStack, directory: str) -> Iterator[Peer]:
    bundles = stack.enter_context(contextlib.closing(Bundles(directory)))
    if shutil.which("crun"):
        mount = cgroup2_in_the_way()
        namespace = stack.enter_context(contextlib.closing(MountNamespace(mount))) if mount else None
        yield Oci("crun", bundles, namespace)
    if shutil.which("runc"):
        yield Oci("runc", bundles)


def _systemd_runs() -> bool:
    return os.path.isdir("/run/systemd/system") and bool(shutil.which("systemd-run"))


def left_out() -> str:
    """Which peers this machine does not have, as a sentence; empty if it has them all."""
    programs = {"tsp": "task-spooler", "crun": "crun", "runc": "runc"}
    missing = [f"{name} (package {package})" for name, package in programs.items() if not shutil.which(name)]
    if not _systemd_runs():
        missing.append("systemd-run (systemd does not run here)")
    if os.geteuid() != 0:
        missing.append("crun and runc (they need root here)")
    return f"Left out: {', '.join(missing)}." if missing else ""
