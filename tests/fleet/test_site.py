"""What `site` has made of hosts that had nothing."""

from __future__ import annotations

import pytest

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


@pytest.mark.parametrize("sandbox", ["standard", "strict"])
def test_the_unit_leaves_room_for_each_sandbox(member: Member, sandbox: str) -> None:
    assert member.cli("run", "--sandbox", sandbox, "--", "echo", "fine") == "fine\n"
