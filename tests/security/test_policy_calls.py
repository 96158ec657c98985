"""The policy as clients meet it: every call x role x rule, jobs that are not theirs to see, and new rules."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator
from functools import partial
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped] # has no types

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.api.v1.job_worker_service_pb2_grpc import JobWorkerServiceStub
from jobworker.gateway import access
from jobworker.identity import Role, encode_role
from jobworker.policy import NAMING_A_JOB, RPCS, WRITING
from support import certs, gateway
from support.access import METHODS
from support.root_side import RootSide, root_side
from support.waiting import until

pytestmark = pytest.mark.root


def user(name: str) -> str:
    return f"spiffe://dev.jobworker.internal/user/{name}"


ONLY = "".join(
    f"  - {{name: only-{rpc.lower()}, allow: [{rpc}], principals: [{user(f'only-{rpc}')}]}}\n" for rpc in RPCS
)
NOT = "".join(
    f"  - {{name: not-{rpc.lower()}, deny: [{rpc}], principals: [{user(f'not-{rpc}')}]}}\n" for rpc in RPCS
)
POLICY = f"""\
version: 1
rules:
{ONLY}{NOT}  - name: all-but
    allow: all
    principals: ["{user("not-*")}"]
  - name: secret
    deny: all
    labels: {{secret: "*"}}
  - name: hold
    allow: [Start]
    principals: ["{user("team-*")}"]
    commands: [[/bin/sleep, "1000"]]
    limits: {{memory: 1G}}
  - name: own
    allow: [Stop, Signal, Delete, Query, Stream, List, Watch, GetAgentInfo]
    principals: ["{user("team-*")}"]
    owner: self
  - name: maintain
    allow: [Drain, Undrain]
    principals: ["{user("team-*")}"]
  - name: look
    allow: [Query, List]
    principals: ["{user("team-b")}"]
    labels: {{open: "yes"}}
"""


class Running:
    """A gateway before a supervisor, both with the policy, and clients of any name."""

    def __init__(self, directory: str, side: RootSide, front: gateway.Gateway) -> None:
        self.side, self.front = side, front
        self._directory = directory
        self._channels: dict[tuple[str, Role], grpc.Channel] = {}

    def channel(self, name: str, role: Role = Role.WRITER) -> grpc.Channel:
        if (name, role) not in self._channels:
            recipe = certs.Recipe(uris=(user(name),), roles=(encode_role(role),))
            pair = certs.make(recipe, certs.dev_pki().pair("ca"))
            files = pair.save(self._directory, f"{name}-{role.value}")
            self._channels[name, role] = self.front.channel(files)
        return self._channels[name, role]

    def call(self, name: str, method: str, request: Any, role: Role = Role.WRITER) -> Any:
        kind = pb.DESCRIPTOR.services_by_name["JobWorkerService"].methods_by_name[method]
        answer = getattr(pb, kind.output_type.name)
        call = self.channel(name, role).unary_unary(
            f"/{kind.containing_service.full_name}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        return call(request, timeout=30)

    def refusal(self, name: str, method: str, request: Any) -> Any:
        with pytest.raises(grpc.RpcError) as caught:
            self.call(name, method, request)
        return caught.value

    def start(self, name: str, **labels: str) -> str:
        request = pb.StartRequest(command="/bin/sleep", args=["1000"], labels=labels)
        return str(self.call(name, "Start", request).job.id)

    def listed(self, name: str, **wanted: Any) -> set[str]:
        return {job.id for job in self.call(name, "List", pb.ListRequest(**wanted)).jobs}

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with tempfile.TemporaryDirectory(prefix="jobworker-test-") as directory:
        os.chmod(directory, 0o755)  # noqa: S103
        with (
            root_side(directory, policy=POLICY) as side,
            gateway.gateway(directory, gateway.behind(side.settings)) as front,
        ):
            made = Running(directory, side, front)
            yield made
            made.close()


def outcome(channel: grpc.Channel, method: str) -> tuple[str, str]:
    """How a call ends whose data are no request, which is found out behind the gate."""
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
    with pytest.raises(grpc.RpcError) as caught:
        call(b"\xff", timeout=30)
    return gateway.code(caught.value), gateway.reason(caught.value)


def test_the_policy_has_a_name_for_every_call() -> None:
    assert {access.rpc_of(method) for method in METHODS} == set(RPCS)
    writing = {access.rpc_of(method) for method, role in access.NEEDED.items() if role is Role.WRITER}
    assert writing == WRITING


def test_the_policy_knows_which_calls_are_about_one_job() -> None:
    service = pb.DESCRIPTOR.services_by_name["JobWorkerService"]
    naming = {method.name for method in service.methods if "job_id" in method.input_type.fields_by_name}
    assert naming == NAMING_A_JOB


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("rule", [*(f"{kind}-{rpc}" for rpc in RPCS for kind in ("only", "not")), "nobody"])
def test_every_call_by_role_and_rule(running: Running, rule: str, role: Role) -> None:
    kind, _, named = rule.partition("-")
    for method in METHODS:
        rpc = access.rpc_of(method)
        found = outcome(running.channel(rule, role), method)
        if not role.includes(access.NEEDED[method]):
            assert found == ("PERMISSION_DENIED", "PERMISSION_DENIED"), method
        elif {"only": rpc == named, "not": rpc != named, "nobody": False}[kind]:
            assert found == ("INVALID_ARGUMENT", "INVALID_FIELD"), method
        else:
            assert found == ("PERMISSION_DENIED", "POLICY_DENIED"), method


def test_what_is_denied_is_told_by_rule_and_without_other_names(running: Running) -> None:
    request = pb.StartRequest(command="/bin/sleep", args=["1000"])
    for name, rule in (("not-Start", "not-start"), ("nobody", "(none)")):
        error = running.refusal(name, "Start", request)
        assert gateway.reason(error) == "POLICY_DENIED"
        info = gateway.detail(error, error_details_pb2.ErrorInfo())
        assert dict(info.metadata) == {"rpc": "Start", "rule": rule, "problem": ""}
        assert "spiffe://" not in repr(error.details())
    error = running.refusal("team-a", "Start", pb.StartRequest(command="/bin/cat"))
    assert "no rule of this agent's policy allows this Start" in error.details()
    request.limits.memory = "2G"
    error = running.refusal("team-a", "Start", request)
    assert "the rule hold of this agent's policy does not allow this Start: limits.memory is 2G" in error.details()
    running.front.wait_for_log('"rule": "hold"')
    entry = running.front.calls("Start")[-1]
    assert (entry["code"], entry["rule"], entry["principal"]) == ("PERMISSION_DENIED", "hold", user("team-a"))


def test_a_job_is_held_to_its_rule(running: Running) -> None:
    job = running.call("team-a", "Query", pb.QueryRequest(job_id=running.start("team-a"))).job
    assert {limit.name: limit.value for limit in job.limits}["memory"] == "1G"


def test_jobs_of_others_are_not_there(running: Running) -> None:
    """As if they were not: the same words, whatever is asked of them."""
    job = running.start("team-a")
    gone = "0000-0000-0000-0000"
    asked: list[tuple[str, Any]] = [
        ("Query", partial(pb.QueryRequest)),
        ("Stop", partial(pb.StopRequest, force=True)),
        ("Stop", partial(pb.StopRequest, signal="NONE")),
        ("Stream", partial(pb.StreamRequest)),
    ]
    for method, request in asked:
        hidden, missing = (running.refusal("team-b", method, request(job_id=of)) for of in (job, gone))
        assert gateway.code(hidden) == "NOT_FOUND"
        assert hidden.details().replace(job, gone) == missing.details()
    running.front.wait_for_log('"problem": ""')
    entry = running.front.calls("Query")[-1]
    assert running.call("team-a", "Query", pb.QueryRequest(job_id=job)).job.id == job
    assert entry["code"] == "NOT_FOUND"
    assert any(line.get("rule") == "(none)" for line in running.front.calls("Stop"))


def test_a_job_that_may_be_seen_and_not_stopped(running: Running) -> None:
    job = running.start("team-a", open="yes")
    assert running.call("team-b", "Query", pb.QueryRequest(job_id=job)).job.id == job
    for method, request in (
        ("Stop", pb.StopRequest(job_id=job)),
        ("Stream", pb.StreamRequest(job_id=job)),
        ("Signal", pb.SignalRequest(job_id=job, signal="CONT")),
        ("Delete", pb.DeleteRequest(job_id=job)),
    ):
        assert gateway.reason(running.refusal("team-b", method, request)) == "POLICY_DENIED"


def test_a_list_shows_what_may_be_queried(running: Running) -> None:
    own, shown, hidden = running.start("team-b"), running.start("team-a", open="yes"), running.start("team-a")
    assert {own, shown} <= running.listed("team-b")
    assert hidden not in running.listed("team-b")
    assert hidden in running.listed("team-a")
    assert own not in running.listed("team-a")
    # Whatever is asked for, and page by page.
    assert running.listed("team-b", id_prefix=hidden) == set()
    assert running.listed("team-b", principal=user("team-a")) & {shown, hidden} == {shown}
    assert running.listed("team-c") == set()
    pages: set[str] = set()
    token = ""
    for _ in itertools.count():
        page = running.call("team-b", "List", pb.ListRequest(page_size=1, page_token=token))
        pages |= {job.id for job in page.jobs}
        token = page.next_page_token
        if not token:
            break
    assert pages == running.listed("team-b")


def test_a_drain_names_what_may_be_queried(running: Running) -> None:
    own, hidden = running.start("team-b"), running.start("team-a")
    try:
        active = set(running.call("team-b", "Drain", pb.DrainRequest()).active_job_ids)
    finally:
        running.call("team-b", "Undrain", pb.UndrainRequest())
    assert own in active
    assert hidden not in active


def test_a_watch_tells_what_may_be_queried(running: Running) -> None:
    shown, hidden, own = running.start("team-a", open="yes"), running.start("team-a"), running.start("team-b")
    watch = JobWorkerServiceStub(running.channel("team-b")).Watch(pb.WatchRequest(snapshot=True), timeout=30)
    told: list[pb.WatchResponse] = []
    for response in watch:
        told.append(response)
        if response.mark.snapshot_complete:
            # What is hidden changes first, and is removed.
            running.call("team-a", "Stop", pb.StopRequest(job_id=hidden, force=True))
            running.call("team-a", "Delete", pb.DeleteRequest(job_id=hidden))
            running.call("team-b", "Stop", pb.StopRequest(job_id=own, force=True))
            running.call("team-b", "Delete", pb.DeleteRequest(job_id=own))
        if response.removed_job_id == own:
            break
    watch.cancel()
    ids = {response.job.id for response in told} | {response.removed_job_id for response in told}
    assert {shown, own} <= ids
    assert hidden not in ids


def test_a_rule_of_labels_hides_from_all(running: Running) -> None:
    error = running.refusal("team-a", "Start", pb.StartRequest(command="/bin/sleep", labels={"secret": "x"}))
    assert gateway.detail(error, error_details_pb2.ErrorInfo()).metadata["rule"] == "secret"


@pytest.fixture
def changing(running: Running) -> Iterator[Running]:
    """The same, with the rules put back afterwards."""
    yield running
    running.side.write_policy(POLICY)
    until(lambda: gateway_says(running), "allowed")


def gateway_says(running: Running) -> str:
    try:
        running.call("team-a", "GetAgentInfo", pb.GetAgentInfoRequest())
    except grpc.RpcError as error:
        return gateway.reason(error)
    return "allowed"


def test_a_change_is_in_force_with_the_next_call(changing: Running) -> None:
    assert gateway_says(changing) == "allowed"
    changing.side.write_policy("version: 1\nrules: [{name: shut, deny: all}]\n")
    assert gateway_says(changing) == "POLICY_DENIED"
    changing.side.write_policy("version: 1\nrules: [{name: open, allow: all}]\n")
    assert gateway_says(changing) == "allowed"


def test_a_bad_change_is_told_and_changes_nothing(changing: Running) -> None:
    changing.side.write_policy("version: 1\nrules: [{name: shut, deny: everything}]\n")
    assert gateway_says(changing) == "allowed"
    changing.front.wait_for_log("line 2: rules[0].deny: must be a list of calls")


def test_a_stream_ends_when_its_rule_does(changing: Running) -> None:
    job = changing.start("team-a")
    stub = JobWorkerServiceStub(changing.channel("team-a"))
    stream = stub.Stream(pb.StreamRequest(job_id=job, follow=True, tail_lines=0))
    assert next(stream).HasField("chunk")
    changing.side.write_policy("version: 1\nrules: [{name: shut, deny: all}]\n")
    assert gateway_says(changing) == "POLICY_DENIED"
    with pytest.raises(grpc.RpcError) as caught:
        list(stream)
    assert gateway.code(caught.value) == "NOT_FOUND"
