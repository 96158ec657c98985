"""worker-agent as a program: what its commands say of what they are given."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobworker.policy import NAMING_A_JOB

PROGRAM = os.path.join(os.path.dirname(sys.executable), "worker-agent")
ALICE = "spiffe://example.org/user/alice"


def run(*args: str) -> tuple[int, str, str]:
    done = subprocess.run([PROGRAM, *args], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def policy(tmp_path: Path) -> str:
    file = tmp_path / "policy.yaml"
    file.write_text("version: 1\nrules: [{name: all, allow: all}]\n")
    return str(file)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            'foo "bar',
            "--command: 'foo \"bar' is not quoted as for a shell: no closing quotation; for example '/usr",
        ),
        ("foo \\", "is not quoted as for a shell: no escaped character"),
    ],
)
def test_a_command_line_that_ends_in_the_middle_is_no_denial(policy: str, command: str, said: str) -> None:
    code, out, err = run("policy", "test", policy, "--as", ALICE, "--rpc", "Start", "--command", command)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--as", "alice"), "--as: 'alice' is no principal's identity, which is spiffe://"),
        (("--as", "spiffe://example.org/alice"), "'spiffe://example.org/alice' is no principal's identity"),
        (("--as", ALICE, "--job-owner", "alice"), "--job-owner: 'alice' is no principal's identity"),
        (("--as", ALICE, "--job-owner", "*"), "--job-owner: '*' is no principal's identity"),
    ],
)
def test_nobody_is_answered_for_who_cannot_be(policy: str, options: tuple[str, ...], said: str) -> None:
    code, out, err = run("policy", "test", policy, "--rpc", "Stop", *options)
    assert (code, out) == (2, "")
    assert said in err
    assert err.endswith("; for example spiffe://example.org/user/alice\n")
    code, out, _ = run("policy", "test", policy, "--rpc", "Stop", "--as", ALICE, "--job-owner", "self")
    assert (code, out.partition("\n")[0]) == (0, "ALLOW by all")


@pytest.mark.parametrize("rpc", sorted(NAMING_A_JOB))
def test_who_has_started_a_job_decides_what_is_done_to_it(tmp_path: Path, rpc: str) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(f"version: 1\nrules:\n  - {{name: own, allow: [{rpc}], owner: self}}\n")
    for owner, decision in (("self", "ALLOW by own"), (f"{ALICE}-s-friend", "DENY by ")):
        code, out, _ = run("policy", "test", str(file), "--rpc", rpc, "--as", ALICE, "--job-owner", owner)
        assert (code, out.startswith(decision)) == (int(owner != "self"), True)


@pytest.mark.parametrize("option", [("--job-owner", "self"), ("--job-label", "team=build")])
def test_what_is_about_no_job_has_none_with_an_owner(policy: str, option: tuple[str, str]) -> None:
    code, out, err = run("policy", "test", policy, "--as", ALICE, "--rpc", "List", *option)
    assert (code, out, err) == (2, "", f"worker-agent: {option[0]}: is about a job, and List names none\n")


@pytest.mark.parametrize("rpc", ["Stop", "List"])
@pytest.mark.parametrize(
    "option",
    [
        ("--command", "/bin/ls"),
        ("--user", "root"),
        ("--sandbox", "host"),
        ("--env", "PATH"),
        ("--workdir", "/"),
        ("--stdin",),
        ("--label", "team=build"),
        ("--memory", "1G"),
    ],
)
def test_what_starts_nothing_is_not_asked_about_a_start(policy: str, rpc: str, option: tuple[str, ...]) -> None:
    owner = ("--job-owner", "self") if rpc == "Stop" else ()
    code, out, err = run("policy", "test", policy, "--as", ALICE, "--rpc", rpc, *owner, *option)
    said = f"worker-agent: {option[0]}: is about what is started, and {rpc} starts nothing\n"
    assert (code, out, err) == (2, "", said)


@pytest.mark.parametrize("option", [("--job-owner", "self"), ("--job-label", "team=build")])
def test_a_start_has_no_job_with_an_owner(policy: str, option: tuple[str, str]) -> None:
    code, out, err = run("policy", "test", policy, "--as", ALICE, "--rpc", "Start", "--command", "ls", *option)
    said = f"worker-agent: {option[0]}: is about a job that was started, and Start names none\n"
    assert (code, out, err) == (2, "", said)


@pytest.mark.parametrize("option", [("--gateway-user", "nobody"), ("--settings", "/run/jobworker/settings.json")])
def test_an_upgrade_without_new_settings_takes_none(tmp_path: Path, option: tuple[str, str]) -> None:
    code, out, err = run("upgrade", "--state-dir", str(tmp_path), *option)
    assert (code, out) == (2, "")
    assert "with --state-dir all settings stay" in err


@pytest.mark.parametrize("since", ["99999999d", "9" * 400 + "d", "0001-01-01T00:00:00+14:00"])
def test_a_time_before_all_times_is_refused(tmp_path: Path, since: str) -> None:
    code, out, err = run("audit", "show", "--state-dir", str(tmp_path), "--since", since)
    assert (code, out, "Traceback" in err) == (2, "", False)
    assert "--since" in err


@pytest.fixture
def config(tmp_path: Path) -> str:
    file = tmp_path / "agent.yaml"
    tls = "{ca: /nowhere/ca.pem, cert: /nowhere/server.pem, key: /nowhere/server.key}"
    file.write_text(f"state_dir: {tmp_path}/state\nlisten: 127.0.0.1:0\ntls: {tls}\n")
    return str(file)


def test_a_keeper_without_a_place_for_its_settings_names_its_unit(config: str) -> None:
    code, out, err = run("keeper", "--config", config, "--settings", "/nowhere/settings.json")
    assert (code, out) == (1, "")
    assert err.startswith("worker-agent: /nowhere/settings.json: cannot be written: No such file or directory; ")
    assert "systemctl start jobworker-keeper; or give another --settings" in err


def test_an_upgrade_of_what_does_not_run_says_how_to_start_it(config: str, tmp_path: Path) -> None:
    for options, said in (
        (
            ("--config", config, "--settings", "/nowhere/settings.json"),
            "/nowhere/settings.json: cannot be read: No",
        ),
        (
            ("--state-dir", str(tmp_path)),
            f"{tmp_path}/supervisor.sock: no agent can be reached there: No such file",
        ),
    ):
        code, out, err = run("upgrade", *options)
        assert (code, out) == (1, "")
        assert err.startswith(f"worker-agent: {said}")
        assert "systemctl start jobworker-keeper" in err
        assert err.count("\n") == 1


def test_a_directory_that_cannot_be_had(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, out, err = run("dev", "--dir", f"{tmp_path}/file/below")
    assert (code, out) == (1, "")
    assert (
        err
        == f"worker-agent: {tmp_path}/file/below: cannot be written: Not a directory; give a --dir of your own\n"
    )
