"""What must be so before any test module is imported, and the fixtures that several kinds of tests share."""

import contextlib
import gc
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest

from jobworker import tls13

# Test modules import grpc before the packages that would see to this.
tls13.require()

from jobworker.api.v1.job_worker_service_pb2_grpc import JobWorkerServiceStub  # noqa: E402
from support import gateway  # noqa: E402
from support.agent import Agent, running_agent  # noqa: E402
from support.link import Link  # noqa: E402
from support.root_side import RootSide, fresh_root_side, root_side  # noqa: E402
from support.whole import Whole  # noqa: E402

# How long an example takes says something about the machine and nothing about the code.
hypothesis.settings.register_profile(
    "jobworker", deadline=None, max_examples=int(os.environ.get("JOBWORKER_EXAMPLES", "100"))
)
hypothesis.settings.load_profile("jobworker")

# How many times slower than others this machine is: an emulated one has as much more time.
SLOWER = int(os.environ.get("JOBWORKER_SLOWER", "1"))
PRINTOUT = pytest.StashKey[list[str]]()
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for cgroups and users")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(needs_root)
        if SLOWER != 1:
            own = item.get_closest_marker("timeout")
            seconds = own.args[0] if own else float(config.getini("timeout"))
            item.add_marker(pytest.mark.timeout(SLOWER * seconds), append=False)


@pytest.fixture
def one_life() -> Iterator[None]:
    """Closes what a test's objects leave open, since in the agent they live as long as their process."""
    before = set(os.listdir("/proc/self/fd"))
    yield
    # What closes its own when it goes is to go now: later it would close another's of the same number.
    gc.collect()
    for fd in set(os.listdir("/proc/self/fd")) - before:
        with contextlib.suppress(OSError):
            os.close(int(fd))


@pytest.fixture(scope="session")
def printout(pytestconfig: pytest.Config) -> list[str]:
    """Lines for people, which are printed behind all tests whether those pass or not."""
    return pytestconfig.stash.setdefault(PRINTOUT, [])


def pytest_sessionfinish(session: pytest.Session) -> None:
    """What a worker has for people goes to where all of them are told of (pytest-xdist)."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["printout"] = session.config.stash.get(PRINTOUT, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    # One that died has nothing to say.
    node.config.stash.setdefault(PRINTOUT, []).extend(getattr(node, "workeroutput", {}).get("printout", []))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for line in config.stash.get(PRINTOUT, []):
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def agent() -> Iterator[Agent]:
    """A whole agent that tests share; each uses jobs of its own."""
    with running_agent() as running:
        yield running


@pytest.fixture(scope="module")
def side() -> Iterator[RootSide]:
    """Keeper and supervisor alone, shared by the tests of a module."""
    with fresh_root_side() as running:
        yield running


@pytest.fixture
def own_side() -> Iterator[RootSide]:
    """Keeper and supervisor for one test alone, which may kill them."""
    with fresh_root_side() as running:
        yield running


@pytest.fixture(scope="module")
def running(side: RootSide, tmp_path_factory: pytest.TempPathFactory) -> Iterator[gateway.Gateway]:
    """A gateway in front of the shared supervisor."""
    with gateway.gateway(tmp_path_factory.mktemp("gateway"), gateway.behind(side.settings)) as started:
        yield started


@pytest.fixture(scope="module")
def stub(running: gateway.Gateway) -> Iterator[JobWorkerServiceStub]:
    """Its calls, as a writer makes them."""
    with running.stub() as connected:
        yield connected


@pytest.fixture
def whole() -> Iterator[Whole]:
    """Keeper, supervisor and gateway of a test's own, to be killed."""
    with tempfile.TemporaryDirectory(prefix="jobworker-test-") as directory:
        os.chmod(directory, 0o755)  # noqa: S103
        with root_side(directory) as own:
            running = Whole(directory, own)
            try:
                yield running
            finally:
                running.gateway.stop()


@pytest.fixture
def link(side: RootSide) -> Iterator[Link]:
    """A subscribed connection to the shared supervisor."""
    connection = side.link(subscribe=True)
    yield connection
    connection.close()
