"""Certificates that are revoked, and lists of them that are good, old, forged or broken."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.api.v1.job_worker_service_pb2_grpc import JobWorkerServiceStub
from jobworker.errors import PkiProblem, Unauthenticated
from jobworker.gateway import revocation
from jobworker.settings.schema import MetricsSettings, Settings, TlsSettings
from support import certs, gateway, pki
from support.certs import Recipe, make
from support.scripted_supervisor import ScriptedSupervisor, job_id, record

CA = certs.dev_pki().pair("ca")
# Between that root and the users.
INTERMEDIATE = make(Recipe("between", uris=(), usage=None, roles=(), key="other4096", ca=True), CA)
HOST = Recipe("host", uris=(), hosts=("127.0.0.1",), usage=certs.SERVER_AUTH, roles=(), key="foreign4096")


def tls(directory: Path, **files: bytes) -> TlsSettings:
    """Settings with these files, by setting."""
    pair = make(HOST, INTERMEDIATE).save(directory, "server", chain=(INTERMEDIATE,))
    made = TlsSettings(pair.ca, pair.cert, pair.key)
    for name, data in files.items():
        (directory / name).write_bytes(data)
        made = changed(made, name, directory / name)
    return made


def changed(tls: TlsSettings, name: str, path: Path) -> TlsSettings:
    fields: dict[str, Any] = {name: str(path)}
    return replace(tls, **fields)


def check(revocations: revocation.Revocations, who: certs.Pair, now: float | None = None) -> None:
    revocations.check(who.certificate, now or time.time())


# Lists.


def test_who_is_named_is_out_and_others_are_not(tmp_path: Path) -> None:
    gone, other = make(Recipe(), CA), make(Recipe(), CA)
    known = revocation.load(tls(tmp_path, crl=certs.crl(CA, 12345, gone)))
    with pytest.raises(Unauthenticated, match="was revoked at 20"):
        check(known, gone)
    check(known, other)


def test_a_list_that_has_ended_vouches_for_nobody(tmp_path: Path) -> None:
    made = tls(tmp_path, crl=certs.crl(CA, 1, ends=timedelta(seconds=-5)))
    with pytest.raises(Unauthenticated, match=r"revocation list ended at 20.*a newer one must be installed"):
        check(revocation.load(made), make(Recipe(), CA))
    allowed = revocation.load(replace(made, stale_crl="allow"))
    check(allowed, make(Recipe(), CA))


def test_an_old_list_still_knows_who_is_out(tmp_path: Path) -> None:
    gone = make(Recipe(), CA)
    made = tls(tmp_path, crl=certs.crl(CA, gone, ends=timedelta(seconds=-5)))
    with pytest.raises(Unauthenticated, match="was revoked at"):
        check(revocation.load(replace(made, stale_crl="allow")), gone)


def test_each_issuer_needs_a_list(tmp_path: Path) -> None:
    known = revocation.load(tls(tmp_path, crl=certs.crl(CA)))
    with pytest.raises(Unauthenticated, match=r"no revocation list of the certificate's issuer \(tls\.crl\)"):
        check(known, make(Recipe(), INTERMEDIATE))
    both = revocation.load(tls(tmp_path, crl=certs.crl(CA) + certs.crl(INTERMEDIATE, 7)))
    check(both, make(Recipe(), INTERMEDIATE))
    assert both.ends is not None
    assert 0 < both.ends - time.time() < 3700


def test_a_ca_that_is_revoked_takes_all_it_issued_along(tmp_path: Path) -> None:
    known = revocation.load(tls(tmp_path, crl=certs.crl(CA, INTERMEDIATE) + certs.crl(INTERMEDIATE)))
    with pytest.raises(Unauthenticated, match="revoked"):
        check(known, make(Recipe(), INTERMEDIATE))
    check(known, make(Recipe(), CA))


def test_so_does_one_higher_up(tmp_path: Path) -> None:
    lower = make(Recipe("lower", uris=(), usage=None, roles=(), key="rsa4096", ca=True), INTERMEDIATE)
    own = make(HOST, lower).save(tmp_path, "server", chain=(lower, INTERMEDIATE))
    (tmp_path / "crl").write_bytes(certs.crl(CA, INTERMEDIATE) + certs.crl(lower))
    made = TlsSettings(own.ca, own.cert, own.key, crl=str(tmp_path / "crl"))
    with pytest.raises(Unauthenticated, match="revoked"):
        check(revocation.load(made), make(Recipe(), lower))
    (tmp_path / "crl").write_bytes(certs.crl(CA) + certs.crl(lower))
    check(revocation.load(made), make(Recipe(), lower))
    (tmp_path / "crl").write_bytes(certs.crl(CA, ends=timedelta(seconds=-1)) + certs.crl(lower))
    with pytest.raises(Unauthenticated, match="list ended"):
        check(revocation.load(made), make(Recipe(), lower))


def test_a_ca_of_the_same_name_is_another_one(tmp_path: Path) -> None:
    """After a new key: the root's list names the old one, whose clients have certificates yet."""
    old = make(Recipe("between", uris=(), usage=None, roles=(), key="rsa4096", ca=True), CA)
    known = revocation.load(tls(tmp_path, crl=certs.crl(CA, old) + certs.crl(INTERMEDIATE)))
    check(known, make(Recipe(), INTERMEDIATE))
    with pytest.raises(Unauthenticated):
        check(known, make(Recipe(), old))
    both = replace(tls(tmp_path), ca=str(tmp_path / "both"), crl=str(tmp_path / "crl"))
    (tmp_path / "both").write_bytes(CA.cert_pem + old.cert_pem)
    check(revocation.load(both), make(Recipe(), INTERMEDIATE))
    with pytest.raises(Unauthenticated):
        check(revocation.load(both), make(Recipe(), old))


def test_of_two_lists_the_newer_counts(tmp_path: Path) -> None:
    gone = make(Recipe(), CA)
    older, newer = certs.crl(CA, begins=timedelta(days=-2)), certs.crl(CA, gone)
    for lists in (older + newer, newer + older):
        with pytest.raises(Unauthenticated):
            check(revocation.load(tls(tmp_path, crl=lists)), gone)


def test_a_ca_that_may_not_sign_lists(tmp_path: Path) -> None:
    lower = make(Recipe("lower", uris=(), usage=None, roles=(), key="rsa4096", ca=True, lists=False), CA)
    made = replace(tls(tmp_path, crl=certs.crl(CA) + certs.crl(lower)), ca=str(tmp_path / "ca"))
    (tmp_path / "ca").write_bytes(CA.cert_pem + lower.cert_pem)
    with pytest.raises(PkiProblem, match="CN=lower, which is not among the CAs that are known"):
        revocation.load(made)


def test_nothing_is_taken_back(tmp_path: Path) -> None:
    made = tls(tmp_path, crl=certs.crl(CA) + certs.crl(INTERMEDIATE))
    before = revocation.load(made)
    (tmp_path / "crl").write_bytes(certs.crl(INTERMEDIATE))
    with pytest.raises(PkiProblem, match=r"holds no list of .* any more"):
        revocation.load(made, before)
    (tmp_path / "crl").write_bytes(certs.crl(CA, begins=timedelta(days=-2)) + certs.crl(INTERMEDIATE))
    with pytest.raises(PkiProblem, match="is older than the one in use"):
        revocation.load(made, before)
    (tmp_path / "crl").write_bytes(certs.crl(CA, 1, begins=timedelta(0)) + certs.crl(INTERMEDIATE))
    assert revocation.load(made, before).ends


def test_long_lists_count_to_their_end(tmp_path: Path) -> None:
    gone = make(Recipe(), CA)
    others = [(1 << 150) + number for number in range(30_000)]
    serials = "\n".join(f"{number:x}" for number in (*others, gone.certificate.serial_number))
    made = tls(tmp_path, crl=certs.crl(CA, *others, gone))
    assert (tmp_path / "crl").stat().st_size > 1 << 20
    for known in (revocation.load(made), revocation.load(tls(tmp_path, revoked=serials.encode()))):
        with pytest.raises(Unauthenticated, match="revoked"):
            check(known, gone)


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    made = tls(tmp_path, revoked=b"1\n")
    os.truncate(made.revoked, 65 << 20)
    with pytest.raises(PkiProblem, match="is larger than 64 MiB"):
        revocation.load(made)


@pytest.mark.parametrize("setting", ["crl", "ca", "revoked"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, setting: str) -> None:
    made = tls(tmp_path, crl=certs.crl(CA))
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(PkiProblem, match="is not a regular file"):
        revocation.load(changed(made, setting, tmp_path / "fifo"))


def test_without_lists_nobody_is_asked_for_one(tmp_path: Path) -> None:
    known = revocation.load(tls(tmp_path))
    check(known, make(Recipe(), INTERMEDIATE))
    assert known.ends is None
    assert revocation.paths(tls(tmp_path)) == ()


def test_a_plain_list_of_serials(tmp_path: Path) -> None:
    gone, also, other = (make(Recipe(), CA) for _ in range(3))
    serials = [f"{who.certificate.serial_number:x}" for who in (gone, also)]
    with_colons = ":".join(serials[1].zfill(40)[at : at + 2] for at in range(0, 40, 2))
    text = f"# lost on a train\nserial=00{serials[0].upper()}  # a laptop\n\n{with_colons}\n"
    known = revocation.load(tls(tmp_path, revoked=text.encode()))
    for who in (gone, also):
        with pytest.raises(Unauthenticated, match="revoked"):
            check(known, who)
    check(known, other)


_PARTIAL = x509.IssuingDistributionPoint(
    full_name=None,
    relative_name=None,
    only_contains_user_certs=False,
    only_contains_ca_certs=False,
    only_some_reasons=frozenset({x509.ReasonFlags.key_compromise}),
    indirect_crl=False,
    only_contains_attribute_certs=False,
)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("crl", lambda: b"", "holds no revocation list in PEM form"),
        ("crl", lambda: CA.cert_pem, "holds no revocation list in PEM form"),
        ("crl", lambda: certs.crl(CA).replace(b"MII", b"AAA", 1), "cannot be read"),
        ("crl", lambda: certs.crl(CA)[:-40], "holds a revocation list that is cut off"),
        ("crl", lambda: certs.crl(certs.foreign_ca()), "is not signed with that CA's key"),
        ("crl", lambda: certs.crl(CA, signer=INTERMEDIATE), "is not signed with that CA's key"),
        ("crl", lambda: certs.crl(make(Recipe("nobody"))), "CN=nobody, which is not among the CAs that are known"),
        ("crl", lambda: certs.crl(make(HOST, INTERMEDIATE)), "CN=host, which is not among the CAs"),
        ("crl", lambda: certs.crl(CA, extra=x509.DeltaCRLIndicator(1)), "extension 2.5.29.27"),
        ("crl", lambda: certs.crl(CA, extra=_PARTIAL), "extension 2.5.29.28"),
        ("crl", lambda: certs.crl(CA) + certs.crl(INTERMEDIATE)[:-100], "holds a revocation list that is cut off"),
        ("crl", lambda: certs.crl(CA)[:-100] + certs.crl(INTERMEDIATE), "holds a revocation list that is cut off"),
        ("crl", lambda: b"-----BEGIN X509 CRL-----\n" * 40_000, "holds a revocation list that is cut off"),
        ("crl", lambda: certs.crl(CA, extra=x509.DeltaCRLIndicator(1), critical=False), "not deltas"),
        ("crl", lambda: certs.crl(CA, begins=timedelta(minutes=30)), "compare the clocks of both hosts"),
        ("revoked", lambda: b"12\n-5\n", "line 2 is not a serial number in hexadecimal: '-5'"),
        ("revoked", lambda: b"12\n\xff\n", "line 2 is not a serial number"),
        ("revoked", lambda: b"1" * 41, "line 1 is not a serial number"),
    ],
)
def test_a_file_that_is_not_to_be_used(tmp_path: Path, name: str, data: Callable[[], bytes], said: str) -> None:
    with pytest.raises(PkiProblem) as caught:
        revocation.load(tls(tmp_path, **{name: data()}))
    assert str(tmp_path / name) in str(caught.value)
    assert said in str(caught.value)


# A gateway that runs.


class Running:
    """A gateway whose CA has a list, and one job whose output does not end."""

    def __init__(self, directory: Path, supervisor: ScriptedSupervisor) -> None:
        self.directory, self.supervisor = directory, supervisor
        self.crl = directory / "list.pem"
        self.users = {name: make(Recipe(common_name=name), CA) for name in ("gone", "other")}
        self.files = {name: who.save(directory, name) for name, who in self.users.items()}
        self.replace(certs.crl(CA))

    def replace(self, data: bytes, *, path: Path | None = None) -> None:
        path = path or self.crl
        beside = path.with_suffix(".new")
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
        beside.rename(path)

    def settings(self) -> Settings:
        pki = certs.dev_pki().copy(self.directory / "pki")
        made = gateway.settings(str(self.directory), pki.files("server"))
        return replace(made, tls=replace(made.tls, crl=str(self.crl)))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Running]:
    supervisor = ScriptedSupervisor(str(tmp_path))
    supervisor.records = [record(1)]
    yield Running(tmp_path, supervisor)
    supervisor.close()


def query(stub: Any) -> str:
    """The call's code."""
    try:
        stub.List(pb.ListRequest())
    except grpc.RpcError as error:
        return gateway.code(error)
    return "OK"


@pytest.mark.parametrize(
    ("method", "request_", "trailer"),
    [
        ("Stream", pb.StreamRequest(job_id=job_id(1), follow=True), "jobworker-resume-offset"),
        ("Watch", pb.WatchRequest(job_ids=[job_id(2)]), "jobworker-resume-token"),
    ],
)
def test_a_revoked_certificate_ends_its_streams_and_no_others(
    world: Running, method: str, request_: Any, trailer: str
) -> None:
    with (
        gateway.gateway(world.directory, world.settings()) as running,
        running.stub(world.files["gone"]) as gone,
        running.stub(world.files["other"]) as other,
    ):
        assert (query(gone), query(other)) == ("OK", "OK")
        ending, going_on = (getattr(stub, method)(request_) for stub in (gone, other))
        for call in (ending, going_on):
            call.initial_metadata()
            if method == "Watch":
                assert next(call).HasField("mark")
        world.replace(certs.crl(CA, world.users["gone"]))
        # At once, on the connection that is up.
        assert (query(gone), query(other)) == ("UNAUTHENTICATED", "OK")
        with pytest.raises(grpc.RpcError) as caught:
            next(ending)
        assert gateway.code(caught.value) == "UNAUTHENTICATED"
        assert "revoked" in str(caught.value)
        assert dict(ending.trailing_metadata())[trailer]
        assert going_on.is_active()
        with running.stub(world.files["gone"]) as anew:
            assert query(anew) == "UNAUTHENTICATED"
        going_on.cancel()
        assert "revocations: read anew" in running.log()


@pytest.mark.parametrize("broken", [b"", b"-----BEGIN X509 CRL-----\n", certs.crl(certs.foreign_ca())])
def test_a_list_that_cannot_be_used_leaves_the_last_one(world: Running, broken: bytes) -> None:
    world.replace(certs.crl(CA, world.users["gone"]))
    with (
        gateway.gateway(world.directory, world.settings()) as running,
        running.stub(world.files["gone"]) as gone,
        running.stub(world.files["other"]) as other,
    ):
        assert (query(gone), query(other)) == ("UNAUTHENTICATED", "OK")
        world.replace(broken)
        assert (query(gone), query(other)) == ("UNAUTHENTICATED", "OK")
        assert "the files have changed and cannot be used" in running.log()
        world.crl.unlink()
        assert (query(gone), query(other)) == ("UNAUTHENTICATED", "OK")
        world.replace(certs.crl(CA))
        assert (query(gone), query(other)) == ("OK", "OK")


def test_a_call_that_was_begun_before_is_refused(world: Running) -> None:
    """The request is long in coming: a certificate that is revoked meanwhile is of no use."""
    revoked = threading.Event()

    def late() -> Iterator[pb.ListRequest]:
        assert revoked.wait(gateway.DEADLINE)
        yield pb.ListRequest()

    with (
        gateway.gateway(world.directory, world.settings()) as running,
        running.channel(world.files["gone"]) as channel,
        running.stub(world.files["other"]) as other,
    ):
        call = channel.stream_unary(
            "/jobworker.api.v1.JobWorkerService/List",
            request_serializer=pb.ListRequest.SerializeToString,
            response_deserializer=pb.ListResponse.FromString,
        )
        answer = call.future(late())
        # Of one connection the server takes up calls in their order.
        assert query(JobWorkerServiceStub(channel)) == "OK"
        world.replace(certs.crl(CA, world.users["gone"]))
        assert query(other) == "OK"
        revoked.set()
        with pytest.raises(grpc.RpcError) as caught:
            answer.result(gateway.DEADLINE)
        assert gateway.code(caught.value) == "UNAUTHENTICATED"


def test_the_metrics_are_not_for_the_revoked_either(world: Running) -> None:
    settings = replace(world.settings(), metrics=MetricsSettings("127.0.0.1:0"))
    with gateway.gateway(world.directory, settings) as running:
        (line,) = (json.loads(line) for line in running.log().splitlines() if '"serving"' in line)

        def scrape(name: str) -> bytes:
            host, _, port = line["metrics"].rpartition(":")
            files = world.files[name]
            context = ssl.create_default_context(cafile=files.ca)
            context.load_cert_chain(files.cert, files.key)
            with (
                socket.create_connection((host, int(port)), gateway.DEADLINE) as plain,
                context.wrap_socket(plain, server_hostname=host) as tls_socket,
            ):
                tls_socket.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
                try:
                    return tls_socket.makefile("rb").read()
                except OSError:
                    return b""

        assert b"jobworker_build_info" in scrape("gone")
        world.replace(certs.crl(CA, world.users["gone"]))
        assert scrape("gone") == b""
        assert b'jobworker_certificate_expiry_timestamp_seconds{certificate="crl"}' in scrape("other")
        world.replace(b"broken")
        assert scrape("gone") == b""
        assert b"jobworker_trust_stale 1.0" in scrape("other")


def test_the_agent_tells_when_its_list_ends(world: Running) -> None:
    ends = x509.load_pem_x509_crl(world.crl.read_bytes()).next_update_utc
    with gateway.gateway(world.directory, world.settings()) as running, running.stub() as stub:
        told = stub.GetAgentInfo(pb.GetAgentInfoRequest()).crl_expires_at
    assert ends is not None
    assert told.seconds == int(ends.timestamp())


def test_a_hangup_reads_everything_again(world: Running) -> None:
    with gateway.gateway(world.directory, world.settings()) as running:
        before = running.log().count("read anew")
        running.process.send_signal(signal.SIGHUP)
        running.wait_for_log("revocations: read anew")
        assert running.log().count("read anew") == before + 2
        with running.stub(world.files["other"]) as other:
            assert query(other) == "OK"


def test_a_gateway_whose_list_is_broken_does_not_start(world: Running) -> None:
    world.replace(b"nothing")
    said = gateway.refusal(world.directory, world.settings())
    assert f"{world.crl}: holds no revocation list in PEM form" in said


def test_lists_of_worker_pki_are_understood(tmp_path: Path) -> None:
    made = pki.copied(tmp_path / "pki")
    made.ok("issue", "user", "carol", "--role", "READER")
    made.ok("issue", "host", "build9.example.org")
    made.ok("revoke", made.path("users", "carol.pem"))
    made.ok("crl")
    files = TlsSettings(
        made.path("ca.pem"),
        made.path("hosts", "build9.example.org.pem"),
        made.path("hosts", "build9.example.org.key"),
        crl=made.path("intermediate.crl"),
    )
    known = revocation.load(files)
    with open(made.path("users", "carol.pem"), "rb") as file:
        carol = x509.load_pem_x509_certificate(file.read())
    with pytest.raises(Unauthenticated, match="was revoked"):
        known.check(carol, time.time())
