"""What `site` has made of hosts that had nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import jobworker
from support.fleet import GATEWAY, KEEPER, PASSPHRASE, Fleet, Member

pytestmark = pytest.mark.timeout(3600)


def test_a_second_run_changes_nothing(fleet: Fleet) -> None:
    play = fleet.play("site", "--diff")
    assert (play.status, play.changed) == (0, 0), play.tail()


def test_a_look_finds_no_drift(fleet: Fleet) -> None:
    play = fleet.play("site", "--check", "--diff", "-vvv")
    assert (play.status, play.changed) == (0, 0), play.tail()


def test_nothing_secret_was_said(fleet: Fleet) -> None:
    assert "PLAY RECAP" in fleet.said
    assert PASSPHRASE not in fleet.said
    assert "PRIVATE KEY" not in fleet.said


def test_another_kind_of_host_is_refused_with_a_sentence(fleet: Fleet) -> None:
    modes = {member.name: member.guest.kind.mode for member in fleet}
    other = sorted({"v1", "v2", "hybrid"} - set(modes.values()))
    play = fleet.play("site", "--check", agent_cgroup_modes=other)
    assert play.status != 0
    for name, mode in modes.items():
        refusal = f"{name}: its cgroups are of the kind {mode}, and agent_cgroup_modes has {', '.join(other)}"
        assert refusal in play.output


# What a host is found to be, which is as good as it has to be.
HOST: dict[str, Any] = {
    "python": [3, 11],
    "machine": "x86_64",
    "ahead": 0.0,
    "cgroups": "v2",
    "systemd": True,
    "name": "host",
    "nft": True,
    "kernel": [6, 1],
    "packaged": False,
    "seccomp": True,
    "openssl": True,
    "free": 10_000,
    "installed": {},
    "current": "",
    "current_is_for_it": False,
    "previous": "",
    "there": [],
}
UNFIT = HOST | {"systemd": False, "packaged": True, "seccomp": False, "openssl": False, "nft": False}


@pytest.mark.parametrize(
    ("variables", "sentences"),
    [
        ({"agent_python": "/usr/bin/python4"}, ["it has no /usr/bin/python4 that works; install Python 3.11"]),
        ({"agent_python": "python3"}, ["have to be absolute paths"]),
        (
            {"agent_min_free_mb": 10**9, "agent_max_clock_skew": -1},
            [
                "MiB are free for versions and state, and agent_min_free_mb is 1000000000",
                "its clock differs from the controller's by",
            ],
        ),
        ({"agent_host": HOST | {"python": [3, 10]}}, ["is Python 3.10, and 3.11 to 3.13 are supported"]),
        ({"agent_host": HOST | {"python": [3, 14]}}, ["is Python 3.14, and 3.11 to 3.13 are supported"]),
        (
            {
                "agent_host": UNFIT,
                "agent_firewall": True,
                "agent_server_name": "other",
                "agent_tls": {},
            },
            [
                "systemd does not run",
                "it has jobworker as a Debian package",
                "install its package libseccomp2",
                "install its package openssl",
                "install its package nftables",
                "agent_server_name other, which is none of pki_names",
                "agent_tls needs ca, cert and key",
            ],
        ),
        ({"agent_state_dir": "/home/jobs"}, ["names a directory below /home"]),
        ({"agent_host": HOST | {"machine": "m68k"}}, ["for Python 3.11 on m68k; make it with `make wheelhouse`"]),
    ],
    ids=lambda value: value[0].split(";")[0] if isinstance(value, list) else "",
)
def test_what_a_host_lacks_is_told_in_sentences(
    fleet: Fleet, variables: dict[str, Any], sentences: list[str]
) -> None:
    """All of it at once. What it is found to be is made up where a host of the lab cannot be made to lack it."""
    first = next(iter(fleet.members))
    play = fleet.play("site", "--check", "--limit", first, **variables)
    assert (play.status != 0, play.changed) == (True, 0), play.tail()
    told = " ".join(play.output.replace("\\n", " ").split())
    assert [sentence for sentence in sentences if sentence not in told] == [], play.tail()


@pytest.mark.parametrize(("unit", "most"), [(KEEPER, 44), (GATEWAY, 26)])
def test_units_are_exposed_as_little_as_promised(member: Member, unit: str, most: int) -> None:
    done = member.guest.root.run(f"systemd-analyze security --no-pager --threshold={most} {unit}")
    assert done.rc == 0, done.stdout


def test_the_root_side_has_read_no_yaml(member: Member) -> None:
    root, pid = member.guest.root, member.main_pid(KEEPER)
    command = root.check_output(f"tr '\\0' ' ' < /proc/{pid}/cmdline")
    assert command.split()[1:6] == ["-I", "-S", "-E", "-X", "utf8"]
    for each in (pid, member.supervisor()):
        assert "yaml" not in root.check_output(f"cat /proc/{each}/maps")


def test_the_gateway_is_nobody_in_particular(member: Member) -> None:
    status = member.guest.root.check_output(f"cat /proc/{member.main_pid(GATEWAY)}/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert "0" not in fields["Uid"].split()
    assert int(fields["CapEff"], 16) == 0
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")


def test_jobs_have_nothing_of_the_unit(member: Member) -> None:
    script = (
        "ulimit -n; umask; cat /proc/self/oom_score_adj; head -c 1 /dev/zero | wc -c; ls /proc/self/fd | wc -l"
    )
    assert member.cli("run", "--", "sh", "-c", script).split() == ["1024", "0022", "0", "1", "4"]


def test_operators_have_the_client_and_what_it_checks_agents_with(fleet: Fleet) -> None:
    *_, last = fleet
    assert last.guest.user.check_output("worker-client --version").endswith(jobworker.__version__)
    assert last.guest.user.file("/etc/jobworker/ca.pem").content == Path(fleet.files("ansible")[0]).read_bytes()


@pytest.mark.parametrize("sandbox", ["standard", "strict"])
def test_the_unit_leaves_room_for_each_sandbox(member: Member, sandbox: str) -> None:
    assert member.cli("run", "--sandbox", sandbox, "--", "echo", "fine") == "fine\n"
