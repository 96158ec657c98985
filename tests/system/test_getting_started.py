"""docs/getting-started.md and the README's tour: what a newcomer types, against a whole agent."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from support import document
from support.agent import Agent

BIN = os.path.dirname(sys.executable)
PAGES = document.all_pages()
# Where both have the newcomer's agent.
DIRECTORY = "/tmp/jw"  # noqa: S108 - what stands there


def bash(agent: Agent, script: str) -> subprocess.CompletedProcess[str]:
    files = {name: f"{agent.pki_dir}/{file}" for name, file in FILES.items()}
    return subprocess.run(
        ["bash", "-uo", "pipefail", "-c", script.replace(DIRECTORY, agent.directory)],
        env={"PATH": f"{BIN}:{os.environ['PATH']}", "JOBWORKER_ADDR": agent.addr, **files},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=100,
    )


FILES = {"JOBWORKER_CA": "ca.pem", "JOBWORKER_CERT": "writer.pem", "JOBWORKER_KEY": "writer.key"}


@pytest.mark.root
def test_the_first_ten_minutes(agent: Agent) -> None:
    script = "".join(document.blocks(PAGES["docs/getting-started.md"], "sh"))
    done = bash(agent, f"set -e\n{script}")
    assert done.returncode == 0, done.stdout
    for said in (
        "would start  sh -c 'echo begun; sleep 1000'",
        " begun\n",
        "  STOPPED\n",
        "  REMOVED\n",
        "exit code",
    ):
        assert said in done.stdout, done.stdout


# What has no end, or needs what is not here.
_NOT_HERE = ("make ", "export ", ".venv/bin/worker-agent dev", "worker-client --inventory", "worker-client watch")
_JOB_ID = re.compile(r"[0-9a-hj-km-np-tv-z]{4}(?:-[0-9a-hj-km-np-tv-z]{4}){3}\n")


@pytest.mark.root
def test_the_tour(agent: Agent) -> None:
    # What stands there, and what it is here.
    known: dict[str, str] = {}
    ran = 0
    for typed, said in document.commands(PAGES["README.md"]):
        if typed.startswith(_NOT_HERE) or "^C" in said or "policy test policy.yaml" in typed:
            continue
        command = typed
        for there, here in known.items():
            command = command.replace(there, here)
        kept = re.fullmatch(r"(\w+)=\$\((.*)\)", command)
        done = bash(agent, kept[2] if kept else command)
        ran += 1
        if kept:
            known[f"${kept[1]}"] = done.stdout.strip()
        elif _JOB_ID.fullmatch(said):
            assert _JOB_ID.fullmatch(done.stdout), done.stdout
            known[said[:4]] = done.stdout.strip()
        refused = said.startswith("worker-client: ")
        # What is out of order in the page is not here.
        assert bool(done.returncode) == refused, (command, done.stdout)
        assert not refused or done.stdout == said
    assert ran >= 12
