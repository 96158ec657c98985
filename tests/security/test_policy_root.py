"""What root refuses, whoever the gateway says that calls: spoken to over its own socket, as the gateway's user."""

from __future__ import annotations

import contextlib
import os
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobworker.errors import (
    CapExceeded,
    InvalidField,
    JobNotFound,
    JobWorkerError,
    LimitUnsupported,
    PermissionDenied,
    PolicyDenied,
    UserDenied,
)
from jobworker.identity import Role
from jobworker.jobs import Idempotency, JobRecord, JobSpec
from jobworker.limits import Limits
from jobworker.wire import messages
from jobworker.wire.callers import Caller
from support.callers import caller
from support.link import Link
from support.root_side import RootSide, root_side
from support.waiting import until

pytestmark = pytest.mark.root

ANYONE, ROOT, OPERATOR, DEPLOY, HELD, FED, CARE = (
    f"spiffe://test/user/{name}" for name in ("w", "root", "op", "deploy", "held", "fed", "care")
)
WEB, WEB_GROUP, OTHER_GROUP, GATEWAY, OWN = 61_001, 61_002, 61_003, 61_004, 610_000_000
PASSWD = f"""\
root:x:0:0::/root:/bin/sh
toor:x:0:0::/root:/bin/sh
nobody:x:65534:65534::/:/bin/sh
web:x:{WEB}:{WEB_GROUP}::/srv/web:/bin/sh
gate:x:{GATEWAY}:{GATEWAY}::/:/bin/sh
pool:x:{OWN + 5}:{OWN + 5}::/:/bin/sh
"""
GROUP = f"""\
root:x:0:
web:x:{WEB_GROUP}:
other:x:{OTHER_GROUP}:web
"""
POLICY = f"""\
version: 1
rules:
  - name: no-strict
    deny: [Start]
    sandboxes: [strict]
  - name: root
    allow: [Start]
    principals: [{ROOT}]
    users: ["*"]
    allow_root: true
    sandboxes: [host, standard]
  - name: operators
    allow: [Start]
    principals: [{OPERATOR}]
    users: ["*"]
    sandboxes: [host, standard]
  - name: deploy
    allow: [Start]
    principals: [{DEPLOY}]
    commands:
      - [/bin/echo, ship, "*"]
    env: [LANG]
  - name: held
    allow: [Start]
    principals: [{HELD}]
    limits:
      memory: 64M
      pids: {{max: 20, required: true}}
  - name: quiet
    allow: [Start]
    principals: [{FED}]
    commands:
      - [/bin/sleep, "*"]
  - name: fed
    allow: [Start]
    principals: [{FED}]
    commands:
      - [/bin/sleep, "*"]
    stdin: true
    limits:
      memory: 64M
  - name: own-jobs
    allow: [Stop, Signal, WriteStdin, Update, Delete, Query]
    owner: self
  - name: look
    allow: [Query]
    principals: [{DEPLOY}]
  - name: care
    allow: [Query, Update]
    principals: [{CARE}, {OPERATOR}]
    labels: {{cared: "for"}}
  - name: rest
    allow: [Start]
    principals: [{ANYONE}]
"""


def own_passwd(directory: str) -> tuple[str, ...]:
    """A command that executes another one where /etc/passwd and /etc/group are these tests' own."""
    for name, text in (("passwd", PASSWD), ("group", GROUP)):
        Path(directory, name).write_text(text)
    mounts = " && ".join(f"mount --bind {directory}/{name} /etc/{name}" for name in ("passwd", "group"))
    return "unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh"


@pytest.fixture(scope="module")
def side() -> Iterator[RootSide]:
    with tempfile.TemporaryDirectory(prefix="jobworker-test-") as directory:
        os.chmod(directory, 0o755)  # noqa: S103
        options: dict[str, Any] = {"policy": POLICY, "gateway_uid": GATEWAY, "first_uid": OWN}
        with root_side(directory, wrapper=own_passwd(directory), **options) as running:
            yield running


def start(link: Link, principal: str, command: str = "/bin/true", *args: str, **spec: Any) -> JobRecord:
    record: JobRecord = link.ask(messages.StartJob(caller(principal), JobSpec(command, args, **spec))).record
    return record


def run(link: Link, principal: str, script: str, **spec: Any) -> tuple[JobRecord, str]:
    record = link.wait_ended(start(link, principal, "/bin/sh", "-c", script, **spec).job_id)
    return record, link.read_log(record).decode()


def test_the_socket_is_the_gateways(side: RootSide) -> None:
    assert os.stat(side.settings.socket_path).st_uid == GATEWAY


# Each line: who asks for what, and which rule refuses it.
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "root by its name": (OPERATOR, {"user": "root"}, "(none)"),
    "root by another name": (OPERATOR, {"user": "toor"}, "(none)"),
    "a named user": (ANYONE, {"user": "web"}, "(none)"),
    "its own user, where one has to be named": (OPERATOR, {}, "(none)"),
    "the profile host": (ANYONE, {"sandbox": "host"}, "(none)"),
    "what is denied to all": (ROOT, {"user": "root", "sandbox": "strict"}, "no-strict"),
    "another command": (DEPLOY, {"command": "/bin/cat"}, "(none)"),
    "another argument": (DEPLOY, {"command": "/bin/echo", "args": ("shop", "x")}, "(none)"),
    "another path": (DEPLOY, {"command": "/bin/../bin/echo", "args": ("ship", "x")}, "(none)"),
    "a name": (DEPLOY, {"command": "echo", "args": ("ship", "x")}, "(none)"),
    "a variable": (
        DEPLOY,
        {"command": "/bin/echo", "args": ("ship", "x"), "env": (("LD_PRELOAD", "/x"),)},
        "(none)",
    ),
    "a directory": (DEPLOY, {"command": "/bin/echo", "args": ("ship", "x"), "workdir": "/"}, "(none)"),
    "no limit": (HELD, {}, "held"),
    "too high a limit": (HELD, {"limits": Limits(pids=21)}, "held"),
    "anything, as nobody": ("spiffe://test/user/nobody", {}, "(none)"),
    "anything, as an odd name": ("\0\ud800*", {}, "(none)"),
}


@pytest.mark.parametrize(("principal", "spec", "rule"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_by_root(side: RootSide, link: Link, principal: str, spec: dict[str, Any], rule: str) -> None:
    with pytest.raises(PolicyDenied) as caught:
        link.ask(messages.StartJob(caller(principal), JobSpec(**{"command": "/bin/true"} | spec)))
    assert (caught.value.rpc, caught.value.rule) == ("Start", rule)
    assert f'"rule": "{rule}"' in side.log()


def test_the_role_comes_first(link: Link) -> None:
    record = start(link, ANYONE, "/bin/sleep", "100")
    reader = caller(ANYONE, Role.READER)
    with pytest.raises(PermissionDenied, match="Start needs the role WRITER"):
        link.ask(messages.StartJob(reader, JobSpec("/bin/true")))
    with pytest.raises(PermissionDenied, match="Stop needs the role WRITER"):
        link.ask(messages.StopJob(reader, record.job_id, 15, 0, force=True))
    link.stop(record.job_id, force=True)


def test_allowed_by_root(link: Link) -> None:
    assert start(link, ANYONE).user == ""
    assert start(link, DEPLOY, "/bin/echo", "ship", "it", env=(("LANG", "C"),)).command == "/bin/echo"


# Named users.


def test_a_named_user_is_that_user(link: Link) -> None:
    script = (
        "id -u; id -g; id -G; pwd; echo $HOME; touch mine; stat -c '%u %g %a' . mine; cat </dev/null >/dev/stdout"
    )
    record, said = run(link, OPERATOR, script, user="web")
    expected = f"""\
        {WEB}
        {WEB_GROUP}
        {WEB_GROUP} {OTHER_GROUP}
        {record.workdir}

        {WEB} {WEB_GROUP} 700
        {WEB} {WEB_GROUP} 644
        """
    assert said == textwrap.dedent(expected)
    assert (record.user, record.uid) == ("web", WEB)


@pytest.mark.parametrize("sandbox", ["standard", "host"])
def test_a_named_user_has_no_way_back(link: Link, sandbox: str) -> None:
    read = "grep -E '^(Uid|Gid|CapEff|NoNewPrivs):' /proc/self/status"
    _, said = run(link, OPERATOR, read, user="web", sandbox=sandbox)
    ids = [line.split()[1:] for line in said.splitlines()]
    assert ids == [[str(WEB)] * 4, [str(WEB_GROUP)] * 4, ["0000000000000000"], ["1"]]


def test_root_where_a_rule_says_so(link: Link) -> None:
    for user in ("root", "toor"):
        record, said = run(link, ROOT, "id -u; id -G", user=user)
        assert (said, record.uid, record.user) == ("0\n0\n", 0, user)


@pytest.mark.parametrize(("user", "why"), [("gate", "gateway runs as it"), ("pool", "given for themselves alone")])
def test_users_that_no_policy_gives(link: Link, user: str, why: str) -> None:
    with pytest.raises(UserDenied, match=why):
        start(link, ROOT, user=user)


def test_a_user_that_there_is_not(link: Link) -> None:
    """Who may not have one does not learn which there are."""
    with pytest.raises(InvalidField, match="user: 'ghost' is not in this host's /etc/passwd"):
        start(link, OPERATOR, user="ghost")
    with pytest.raises(PolicyDenied):
        start(link, ANYONE, user="ghost")
    with pytest.raises(InvalidField, match="user: 'a:b' is not the name of a user"):
        start(link, OPERATOR, user="a:b")


def test_named_users_take_no_user_id_of_the_jobs_own() -> None:
    with tempfile.TemporaryDirectory(prefix="jobworker-test-") as directory:
        os.chmod(directory, 0o755)  # noqa: S103
        jobs: dict[str, Any] = {"first_uid": OWN + 100, "uid_count": 1, "keep_ended": 1}
        policy = 'version: 1\nrules: [{name: all, allow: [Start], users: [own, "*"]}, {name: s, allow: all}]\n'
        with root_side(directory, policy=policy, wrapper=own_passwd(directory), **jobs) as small:
            link = small.link(subscribe=True)
            own = start(link, ANYONE, "/bin/sleep", "100")
            assert own.uid == OWN + 100
            named = [link.wait_ended(start(link, ANYONE, user="web").job_id) for _ in range(3)]
            assert {record.uid for record in named} == {WEB}
            link.stop(own.job_id, force=True)
            # One more, so that all before it are removed: the one id goes to the next job.
            link.wait_ended(start(link, ANYONE, user="web").job_id)

            def uid() -> int:
                with contextlib.suppress(CapExceeded):
                    return start(link, ANYONE).uid
                return 0

            until(uid, OWN + 100)


def test_a_named_users_job_goes_on_after_a_crash() -> None:
    with tempfile.TemporaryDirectory(prefix="jobworker-test-") as directory:
        os.chmod(directory, 0o755)  # noqa: S103
        with root_side(directory, policy=POLICY, wrapper=own_passwd(directory)) as own:
            record = start(own.link(), OPERATOR, "/bin/sleep", "1000", user="web")
            os.kill(own.supervisor_pid(), 9)
            link = own.reconnect()
            assert (link.inspect(record.job_id).user, link.inspect(record.job_id).uid) == ("web", WEB)
            with pytest.raises(JobNotFound):
                link.stop(record.job_id, force=True)
            assert link.stop(record.job_id, who=caller(OPERATOR), force=True).ended_ns


def test_without_a_policy_no_user_is_to_be_had() -> None:
    with tempfile.TemporaryDirectory(prefix="jobworker-test-") as directory:
        os.chmod(directory, 0o755)  # noqa: S103
        with root_side(directory) as plain:
            for user in ("nobody", "root"):
                with pytest.raises(PolicyDenied, match="where a policy allows it, and this agent has none"):
                    start(plain.link(), ANYONE, user=user)


def test_an_ordinary_users_agent_has_none() -> None:
    with tempfile.TemporaryDirectory(prefix="jobworker-test-") as directory:
        os.chmod(directory, 0o755)  # noqa: S103
        with root_side(directory, as_user=65534) as plain, pytest.raises(JobWorkerError) as caught:
            start(plain.link(), ANYONE, user="nobody")
        assert isinstance(caught.value, PolicyDenied)


# Limits.


def test_a_job_is_held_to_what_its_rule_says(link: Link) -> None:
    limits = {limit.name: limit for limit in start(link, HELD, limits=Limits(pids=9, cpu_millis=500)).limits}
    assert {name: (limit.requested, limit.value) for name, limit in limits.items()} == {
        "memory": ("64M", "64M"),
        "pids": ("9", "9"),
        "cpu": ("50%", "50%"),
    }


def test_what_a_rule_says_is_not_dropped_where_the_host_cannot() -> None:
    """Even if the client would have it so."""
    with tempfile.TemporaryDirectory(prefix="jobworker-test-") as directory:
        os.chmod(directory, 0o755)  # noqa: S103
        caps = "{io_write: 1M}"
        policy = f"version: 1\nrules: [{{name: held, allow: [Start], workdirs: [/proc], limits: {caps}}}]\n"
        with root_side(directory, policy=policy) as own, pytest.raises(LimitUnsupported, match="io_write"):
            # No disk is there that could be limited.
            start(own.link(), ANYONE, workdir="/proc", best_effort=True)


def test_a_host_that_has_less_than_the_rule_gives_what_it_has() -> None:
    with tempfile.TemporaryDirectory(prefix="jobworker-test-") as directory:
        os.chmod(directory, 0o755)  # noqa: S103
        policy = "version: 1\nrules: [{name: held, allow: [Start], limits: {memory: 1G, cpuset: 0-4000}}]\n"
        with root_side(directory, policy=policy, max_memory_bytes=2**29) as own:
            limits = {limit.name: limit.value for limit in start(own.link(), ANYONE).limits}
            assert limits["memory"] == "512M"
            assert limits["cpuset"]
            with pytest.raises(InvalidField, match=r"limits\.memory: 1G is more than this host allows"):
                start(own.link(), ANYONE, limits=Limits(memory_bytes=2**30))


# Stop.


def test_only_whom_the_policy_names_stops_a_job(link: Link) -> None:
    record = start(link, ANYONE, "/bin/sleep", "1000")

    def stop(principal: str) -> JobRecord:
        return link.stop(record.job_id, who=caller(principal), force=True)

    with pytest.raises(JobNotFound):
        stop(OPERATOR)
    with pytest.raises(PolicyDenied, match="no rule of this agent's policy allows this Stop"):
        stop(DEPLOY)
    assert link.inspect(record.job_id).ended_ns == 0
    assert stop(ANYONE).ended_ns
    # What has ended is no less hidden.
    with pytest.raises(JobNotFound):
        stop(OPERATOR)


@pytest.mark.parametrize("rpc", ["Signal", "WriteStdin", "Update", "Delete"])
def test_other_changes_are_judged_like_stops(link: Link, rpc: str) -> None:
    record = start(link, ANYONE, "/bin/sleep", "1000", stdin_open=True)

    def ask(principal: str, role: Role | None = Role.WRITER) -> Any:
        who = Caller(principal, role)
        if rpc == "Signal":
            return link.ask(messages.SignalJob(who, record.job_id, 18, everyone=False))
        if rpc == "WriteStdin":
            return link.ask(messages.WriteStdin(who, record.job_id, None, b"x", end=False))
        if rpc == "Update":
            return link.ask(messages.UpdateJob(who, record.job_id, Limits(pids=50), force=False))
        return link.ask(messages.DeleteJob(who, record.job_id))

    if rpc == "Delete":
        link.stop(record.job_id, force=True)
    with pytest.raises(JobNotFound):
        ask(OPERATOR)
    with pytest.raises(PolicyDenied, match=f"allows this {rpc}"):
        ask(DEPLOY)
    for role in (Role.READER, None):
        with pytest.raises(PermissionDenied):
            ask(ANYONE, role)
    assert link.inspect(record.job_id).job_id == record.job_id
    ask(ANYONE)


@pytest.mark.parametrize("spec", [{"stdin": b"fed"}, {"stdin": b"fed", "stdin_open": True}, {"stdin_open": True}])
def test_an_update_of_what_reads_goes_by_the_rule_for_it(link: Link, spec: dict[str, Any]) -> None:
    more = Limits(memory_bytes=65 << 20)
    quiet = start(link, FED, "/bin/sleep", "1000")
    link.ask(messages.UpdateJob(caller(FED), quiet.job_id, more, force=False))
    record = start(link, FED, "/bin/sleep", "1000", **spec)
    with pytest.raises(PolicyDenied, match=r"fed of this agent's policy .* Update: limits\.memory is 65M, more"):
        link.ask(messages.UpdateJob(caller(FED), record.job_id, more, force=False))


def test_an_update_gives_no_more_than_a_start(link: Link) -> None:
    """Of who asks for it, or of who has started the job."""

    def give(who: str, record: JobRecord, **limits: Any) -> dict[str, str]:
        request = messages.UpdateJob(caller(who), record.job_id, Limits(**limits), force=False)
        return {status.name: status.value for status in link.ask(request).record.limits}

    labels = (("cared", "for"),)
    record = start(link, HELD, "/bin/sleep", "1000", limits=Limits(pids=10), labels=labels)
    assert give(HELD, record, memory_bytes=32 << 20) == {"memory": "32M", "pids": "10"}
    for who in (HELD, CARE):
        with pytest.raises(
            PolicyDenied, match=r"held of this agent's policy .* Update: limits\.memory is 65M, more"
        ):
            give(who, record, memory_bytes=65 << 20)
        with pytest.raises(PolicyDenied, match=r"limits\.pids is 21, more than 20"):
            give(who, record, memory_bytes=16 << 20, pids=21)
    assert give(CARE, record, pids=20) == {"memory": "32M", "pids": "20"}
    # What is not started by a rule, as another user say, is given nothing by one either.
    with pytest.raises(PolicyDenied):
        give(OPERATOR, record, memory_bytes=65 << 20)
    link.stop(record.job_id, who=caller(HELD), force=True)


@pytest.mark.parametrize("draining", [True, False])
def test_a_drain_needs_a_rule(link: Link, *, draining: bool) -> None:
    with pytest.raises(PolicyDenied, match="allows this " + ("Drain" if draining else "Undrain")):
        link.ask(messages.Drain(caller(ANYONE), draining=draining))
    with pytest.raises(PermissionDenied):
        link.ask(messages.Drain(Caller(ANYONE), draining=draining))
    assert start(link, ANYONE).started_ns


def test_a_start_without_a_role_is_refused(link: Link) -> None:
    with pytest.raises(PermissionDenied):
        link.ask(messages.StartJob(Caller(ANYONE), JobSpec("/bin/true")))


def test_an_idempotent_repeat_is_judged_anew(link: Link, side: RootSide) -> None:
    key = Idempotency("key", "digest")
    spec = JobSpec("/bin/true")
    first = link.ask(messages.StartJob(caller(ANYONE), spec, key)).record
    assert link.ask(messages.StartJob(caller(ANYONE), spec, key)).record.job_id == first.job_id
    side.write_policy(POLICY.replace(f"principals: [{ANYONE}]", "principals: [spiffe://test/user/gone]"))
    link.ask(messages.ReadPolicy())
    try:
        with pytest.raises(PolicyDenied):
            link.ask(messages.StartJob(caller(ANYONE), spec, key))
    finally:
        side.write_policy(POLICY)
        link.ask(messages.ReadPolicy())
