"""`worker-agent doctor`: what it finds on this host, and of configurations that are wrong."""

from __future__ import annotations

import glob
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from support import certs
from support.agent import DEADLINE, Agent
from support.certs import Files
from support.tls_servers import SERVER, server_files

PROGRAM = os.path.join(os.path.dirname(sys.executable), "worker-agent")
HOUR = timedelta(hours=1)


@pytest.fixture
def directory() -> Iterator[Path]:
    """One that every user passes through."""
    with tempfile.TemporaryDirectory(prefix="jobworker-test-") as made:
        os.chmod(made, 0o755)  # noqa: S103
        yield Path(made)


def config(directory: Path, files: Files | None = None, **more: Any) -> str:
    files = files or certs.dev_pki().files("server")
    tls = {"ca": files.ca, "cert": files.cert, "key": files.key}
    own = {"state_dir": str(directory / "state"), "listen": "127.0.0.1:0", "isolation": {"missing": "report"}}
    path = directory / "agent.yaml"
    path.write_text(yaml.safe_dump({**own, "tls": tls, **more}))
    return str(path)


def doctor(path: str, *args: str, **options: Any) -> tuple[int, list[dict[str, str]]]:
    """The exit code, and what it finds."""
    command = [PROGRAM, "doctor", "--config", path, "--format", "json", *args]
    done = subprocess.run(command, capture_output=True, timeout=DEADLINE, check=False, **options)
    assert done.stderr == b""
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def failures(path: str, *args: str) -> dict[str, str]:
    status, found = doctor(path, *args)
    failed = {each["check"]: f"{each['told']}; {each['hint']}" for each in found if each["level"] == "fail"}
    assert status == bool(failed)
    return failed


def told(found: list[dict[str, str]], check: str, level: str = "ok") -> list[str]:
    return [each["told"] for each in found if (each["check"], each["level"]) == (check, level)]


def test_a_good_host_and_configuration(directory: Path) -> None:
    (directory / "state").mkdir()
    status, found = doctor(config(directory))
    assert status == 0
    for check in ("settings", "kernel", "state", "tls", "tls cert", "tls ca"):
        assert told(found, check), check
    assert {"clock", "space", "disk", "sandbox", "limits"} <= {each["check"] for each in found}
    assert all(set(each) == {"check", "level", "told", "hint"} for each in found)
    assert all(each["hint"] for each in found if each["level"] != "ok")


def test_it_is_text_for_people(directory: Path) -> None:
    done = subprocess.run(
        [PROGRAM, "doctor", "--config", config(directory)], capture_output=True, timeout=DEADLINE, check=False
    )
    lines = done.stdout.decode().splitlines()
    assert (done.returncode, done.stderr) == (0, b"")
    assert lines[0] == f"ok    settings     {directory}/agent.yaml is good"
    assert {line.split()[0] for line in lines} <= {"ok", "warn"}


def test_it_finds_what_an_agent_finds(agent: Agent, directory: Path) -> None:
    info = json.loads(agent.cli("info", "--format", "json", check=True).stdout)
    _, found = doctor(config(directory))
    limits = "; ".join(told(found, "limits"))
    held = [name for name, limit in info["limits"].items() if limit["enforcement"] != "UNSUPPORTED"]
    assert limits.startswith(f"can be set (cgroups: {info['cgroup_mode']}): {', '.join(held)}") or not held
    lacking = {name for name, part in info["sandbox_parts"].items() if part["missing_because"]}
    warned = " ".join(told(found, "sandbox", "warn"))
    assert lacking == {name for name in info["sandbox_parts"] if name in warned}


def test_nothing_is_left_behind(directory: Path) -> None:
    path, temporary = config(directory), directory / "temporary"
    temporary.mkdir()
    doctor(path, env={**os.environ, "TMPDIR": str(temporary)})
    assert sorted(os.listdir(directory)) == ["agent.yaml", "temporary"]
    assert not os.listdir(temporary)
    assert not glob.glob("/sys/fs/cgroup/**/jobworker/doctor-*", recursive=True)


def test_a_wrong_configuration_is_told_and_the_host_as_well(directory: Path) -> None:
    path = config(directory, jobs={"max_activ": 3})
    status, found = doctor(path)
    assert status == 1
    assert "jobs.max_activ: is not known here; for example max_active" in told(found, "settings", "fail")[0]
    assert told(found, "kernel")
    assert not told(found, "tls")
    gone = failures("/nonexistent.yaml")["settings"]
    assert gone.startswith("/nonexistent.yaml: cannot be read: No such file or directory; name yours")


def test_certificates_that_do_not_serve(directory: Path) -> None:
    pki = certs.dev_pki()
    good = pki.files("server")
    other = Files(good.ca, good.cert, pki.path("writer.key"))
    assert "is not the key of the certificate" in failures(config(directory, other))["tls"]
    missing = Files(str(directory / "no.pem"), good.cert, good.key)
    assert "no.pem: cannot be read: No such file" in failures(config(directory, missing))["tls ca"]
    ended = server_files(directory, SERVER)
    assert failures(config(directory, ended)) == {}
    os.chmod(ended.key, 0o644)
    assert failures(config(directory, ended))["tls"].endswith(f"(mode 0644); chmod 0600 {ended.key}")


@pytest.mark.parametrize(
    ("begin", "end", "expected"),
    [(-2 * HOUR, -HOUR, "the agent's certificate ended on 2"), (HOUR, 30 * 24 * HOUR, "compare the clocks")],
)
def test_dates_of_the_agents_certificate(directory: Path, begin: timedelta, end: timedelta, expected: str) -> None:
    recipe = certs.Recipe("localhost", (), SERVER.hosts, SERVER.usage, (), begin=begin, end=end)
    assert expected in failures(config(directory, server_files(directory, recipe)))["tls cert"]


def test_what_ends_soon_is_warned_of(directory: Path) -> None:
    lists = directory / "lists.pem"
    lists.write_bytes(certs.crl(certs.dev_pki().pair("ca")))
    files = server_files(directory, SERVER)
    tls = {"ca": files.ca, "cert": files.cert, "key": files.key, "crl": str(lists)}
    _, found = doctor(config(directory, tls=tls))
    assert told(found, "tls cert", "warn")
    assert "the first of the revocation lists ends on 2" in told(found, "tls crl", "warn")[0]


@pytest.mark.root
def test_profiles_of_limits_that_are_wrong(directory: Path) -> None:
    limits = directory / "limits.yaml"
    limits.write_text("version: 1\nprofiles: {small: {pid: 1}}\n")
    path = config(directory, limits=str(limits), isolation={"missing": "report"})
    assert "profiles.small.pid: is not a limit" in failures(path)["profiles"]
    limits.write_text("version: 1\nprofiles: {small: {pids: 1}}\n")
    assert "profiles" not in failures(path)


@pytest.mark.root
def test_a_policy_that_is_wrong(directory: Path) -> None:
    policy = directory / "policy.yaml"
    policy.write_text("version: 1\nrules: [{name: all, alow: all}]\n")
    path = config(directory, policy=str(policy), isolation={"missing": "report"})
    assert "rules[0].alow: is not known here" in failures(path)["policy"]
    policy.write_text("version: 1\nrules: [{name: all, allow: all}]\n")
    assert failures(path) == {}
    os.chmod(policy, 0o666)  # noqa: S103 - which is what is wrong with it
    assert "chmod go-w" in failures(path)["policy"]


def test_a_state_directory_without_a_disk_or_of_a_later_version(directory: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="jobworker-test-") as memory:
        _, found = doctor(config(directory, state_dir=memory))
    assert "which has no disk" in told(found, "disk", "warn")[0]
    jobs = directory / "state" / "jobs"
    jobs.mkdir(parents=True)
    (directory / "state" / "format").write_text("999\n")
    assert "written by a later version" in failures(config(directory))["state"]


@pytest.mark.root
def test_the_certificates_are_read_as_the_gateways_user(directory: Path) -> None:
    files = server_files(directory, SERVER)
    assert told(doctor(config(directory, files))[1], "tls", "warn") == ["read as root, who may read all"]
    assert not told(doctor(config(directory, files), "--gateway-user", "nobody")[1], "tls", "warn")
    found = failures(config(directory, files), "--gateway-user", "nobody")
    # All of them at once, and what to do.
    for name, path in (("ca", files.ca), ("key", files.key)):
        assert f"{path}: cannot be read: Permission denied; let the gateway's user (65534)" in found[f"tls {name}"]
    os.chown(files.key, 65534, 65534)
    ca = directory / "ca.pem"
    ca.write_bytes(Path(files.ca).read_bytes())
    assert "tls" not in failures(
        config(directory, Files(str(ca), files.cert, files.key)), "--gateway-user", "nobody"
    )


def test_a_user_that_is_not_there(directory: Path) -> None:
    found = failures(config(directory), "--gateway-user", "nobody-here")
    assert "there is no user 'nobody-here'" in found["settings"]


@pytest.mark.root
def test_an_ordinary_user_is_told_what_root_would_have(directory: Path) -> None:
    try:
        status, found = doctor(config(directory), user=65534, group=65534, extra_groups=[], env={"HOME": "/"})
    except PermissionError:
        pytest.skip("this Python is installed where only root gets")
    assert status in (0, 1)
    assert told(found, "user", "warn") == ["this is not root"]
    assert "no cgroup is delegated to this user" in told(found, "limits", "warn")[0]
