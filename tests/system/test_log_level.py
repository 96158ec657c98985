"""Which lines are logged, and how they look to whom."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.settings import schema
from jobworker.wire import messages
from support.gateway import Gateway, behind, gateway
from support.link import Link
from support.root_side import RootSide, fresh_root_side
from support.terminals import on_a_terminal


@pytest.fixture
def side() -> Iterator[RootSide]:
    with fresh_root_side() as running:
        yield running


def reload(side: RootSide, link: Link, level: str) -> Link:
    """As `worker-agent upgrade --config` does when the file has changed."""
    schema.write(
        replace(side.settings, log_level=level), os.path.join(os.path.dirname(side.state_dir), "settings.json")
    )
    link.ask(messages.Upgrade())
    link.drain()
    link.close()
    return side.reconnect(subscribe=True)


def starts(side: RootSide) -> int:
    return side.log().count('"job started"')


def call(running: Gateway) -> None:
    with running.stub() as stub:
        stub.GetAgentInfo(pb.GetAgentInfoRequest(), timeout=30, wait_for_ready=True)


def test_a_reload_of_the_root_side_is_for_both(side: RootSide, tmp_path: str) -> None:
    with gateway(tmp_path, behind(side.settings)) as running:
        link = side.link(subscribe=True)
        link.wait_ended(link.start("/bin/true").job_id)
        call(running)
        running.wait_for_calls("GetAgentInfo", 1)
        assert starts(side) == 1
        link = reload(side, link, "error")
        # From here on it answers by what the next supervisor has told it.
        running.wait_for_log("supervisor not connected")
        call(running)
        link.wait_ended(link.start("/bin/true").job_id)
        assert starts(side) == 1
        link = reload(side, link, "info")
        running.wait_for_log('"event": "log level"')
        call(running)
        link.wait_ended(link.start("/bin/true").job_id)
        assert starts(side) == 2
        # The first and the last.
        running.wait_for_calls("GetAgentInfo", 2)
        assert [line["level"] for line in running.calls("GetAgentInfo")] == ["info"] * 2


_LINES = """
import structlog
from jobworker.gateway import log as gateway
from jobworker.supervisor.log import Log
gateway.configure("warning")
Log("warning").info("root", n=0)
Log("warning").warning("root", n=1)
Log("warning").error("root", text="a\\x1b[2J")
structlog.get_logger().info("gateway", n=0)
structlog.get_logger().warning("gateway", n=1)
structlog.get_logger().error("gateway", n=2)
import logging
logging.getLogger("library").warning("of a library")
"""


def written(path: str, **environment: str) -> list[str]:
    """What both logs write there, as a process with this environment."""
    with open(path, "wb") as file:
        subprocess.run([sys.executable, "-c", _LINES], stderr=file, check=True, env=dict(os.environ) | environment)
    with open(path) as file:
        return file.read().splitlines()


def test_both_logs_have_one_schema(tmp_path: str) -> None:
    lines = [json.loads(line) for line in written(os.path.join(tmp_path, "log"))]
    assert [line["event"] for line in lines] == ["root", "root", "gateway", "gateway", "of a library"]
    for line in lines:
        assert line["level"] in ("warning", "error")
        assert line["timestamp"].endswith("Z")
        assert len(line["timestamp"]) == len("2026-11-28T15:28:05.589401Z")


def test_the_journal_is_told_priorities(tmp_path: str) -> None:
    path = os.path.join(tmp_path, "log")
    open(path, "w").close()
    where = os.stat(path)
    lines = written(path, JOURNAL_STREAM=f"{where.st_dev}:{where.st_ino}")
    assert [line[:3] for line in lines] == ["<4>", "<3>", "<4>", "<3>", "<4>"]
    assert all(json.loads(line[3:])["event"] for line in lines)


def test_a_file_is_not_taken_for_the_journal(tmp_path: str) -> None:
    # Inherited from whoever has the journal, and redirected.
    assert all(line[0] == "{" for line in written(os.path.join(tmp_path, "log"), JOURNAL_STREAM="1:2"))


def shown(**environment: str) -> list[str]:
    """The same on a terminal."""
    code, text = on_a_terminal([sys.executable, "-c", _LINES], **environment)
    assert code == 0, text
    return text.decode().splitlines()


def test_a_person_at_a_terminal_gets_text() -> None:
    said = shown()
    assert len(said) == 5
    assert "[warning  ] root" in said[0]
    assert said[0].endswith("n=1")
    assert "\\u001b[2J" in said[1]
    assert "gateway" in said[2]
    assert "\x1b[" in said[2]


def test_who_wants_no_colours_gets_none() -> None:
    said = shown(NO_COLOR="1")
    assert len(said) == 5
    assert "\x1b[" not in "".join(said)
