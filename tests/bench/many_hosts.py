"""`python -m bench.many_hosts`: one call of worker-client on many hosts, which are agents on this machine."""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jobworker import tls13

# Before grpc is imported; the processes that are started here inherit it.
tls13.require()

from bench.agents import scratch  # noqa: E402
from support import certs  # noqa: E402
from support.agent import Agent  # noqa: E402
from support.inventory import Hosts  # noqa: E402

# Starting an agent is the work of two interpreters and more.
_STARTS_AT_ONCE = 4
_ROUNDS = 3


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.many_hosts", description=__doc__)
    parser.add_argument("--hosts", type=int, default=100, help="agents to start, of some 85 MiB each")
    parser.add_argument("--forks", type=int, default=20, help="hosts at a time")
    options = parser.parse_args(arguments)
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(scratch())
        running: dict[str, Agent] = {}
        stack.callback(_close, running)
        # Made once, and not by each thread.
        certs.dev_pki()
        begin = time.monotonic()
        with ThreadPoolExecutor(_STARTS_AT_ONCE) as pool:
            for name in (f"host{number:03}" for number in range(options.hosts)):
                pool.submit(_start, directory, name, running)
        print(f"{len(running)} agents, started in {time.monotonic() - begin:.0f} s", flush=True)
        hosts = Hosts(Path(directory), {name: agent.addr for name, agent in sorted(running.items())})
        for _ in range(_ROUNDS):
            _measure(hosts, options.forks)


def _start(directory: str, name: str, running: dict[str, Agent]) -> None:
    own = os.path.join(directory, name)
    os.mkdir(own, 0o755)
    running[name] = Agent(own)


def _close(running: dict[str, Agent]) -> None:
    with ThreadPoolExecutor(_STARTS_AT_ONCE) as pool:
        list(pool.map(Agent.close, running.values()))


def _measure(hosts: Hosts, forks: int) -> None:
    command = hosts.command("--group", "web", "--forks", str(forks), "run", "--", "true")
    before, begin = os.times(), time.monotonic()
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    seconds, after = time.monotonic() - begin, os.times()
    if done.returncode:
        raise RuntimeError(done.stderr)
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    print(f"{seconds:.1f} s, {cpu:.1f} s of CPU the client's; {done.stderr.splitlines()[-1]}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
