"""Scripts as jobs, and what they said."""

from __future__ import annotations

from typing import Any

from jobworker.jobs import JobRecord
from support.link import Link

PYTHON = ("/usr/bin/python3", "-I", "-c")


def run(link: Link, *command: str, **spec: Any) -> tuple[JobRecord, str]:
    record = link.wait_ended(link.start(*command, **spec).job_id)
    return record, link.read_log(record).decode()


def shell(link: Link, script: str, sandbox: str, **spec: Any) -> str:
    return run(link, "/bin/sh", "-c", script, sandbox=sandbox, **spec)[1]


def python(link: Link, script: str, sandbox: str, **spec: Any) -> str:
    return run(link, *PYTHON, script, sandbox=sandbox, **spec)[1]
