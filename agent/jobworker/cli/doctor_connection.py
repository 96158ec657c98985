"""What `worker-client doctor` finds on the way to the agent: files, address, TLS, and the first call."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from cryptography import x509

from jobworker import client
from jobworker.cli import doctor_agent
from jobworker.client import tls_files, tls_probe
from jobworker.client.endpoint import Endpoint
from jobworker.client.failures import CallFailed
from jobworker.errors import JobWorkerError, TlsProblem
from jobworker.findings import Finding, Level, failure, warning

# For what each check asks of the other side, in seconds.
_PATIENCE = 10.0
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
# What is left of a certificate's life when it should have been renewed: `worker-pki` does so at two thirds of it.
_LAST_PART = 0.1


def findings(endpoint: Endpoint, named: str) -> Iterator[Finding]:
    """Check by check, until one fails that the others stand on.

    Args:
        endpoint: the agent.
        named: the id of the request to it; empty for one by itself.
    """
    failures = set[str]()
    for check, look in (("ca", _ca), ("cert", _certificate), ("key", _key), ("address", _address)):
        finding = _looked(check, look, endpoint)
        # A certificate that cannot be read stands in the way of the look at its key as well.
        if finding.told not in failures:
            yield finding
        if finding.level is Level.FAIL:
            failures.add(finding.told)
    if failures:
        return
    yield (trust := _looked("tls", _tls, endpoint))
    if trust.level is not Level.FAIL:
        yield from _agent(endpoint, named)


def _looked(check: str, look: Callable[[Endpoint], Finding], endpoint: Endpoint) -> Finding:
    try:
        return look(endpoint)
    except TlsProblem as problem:
        return failure(check, problem.problem, problem.fix)


def _ca(endpoint: Endpoint) -> Finding:
    bundle = tls_files.check_ca(endpoint)
    number = "1 CA" if len(bundle) == 1 else f"{len(bundle)} CAs"
    return Finding("ca", f"{number}, until {_day(max(ca.not_valid_after_utc for ca in bundle))}")


def _certificate(endpoint: Endpoint) -> Finding:
    bearer = tls_files.check_certificate(endpoint)
    told = f"{bearer.uri} with the role {bearer.role.value}"
    return _dated("cert", told, bearer.certificate, "have it renewed")


def _key(endpoint: Endpoint) -> Finding:
    tls_files.check_key(endpoint)
    mode = stat.S_IMODE(os.stat(endpoint.key).st_mode)
    if mode & _OTHERS:
        return warning("key", f"it fits, but others can use it (mode {mode:04o})", f"chmod 600 {endpoint.key}")
    return Finding("key", "it is the certificate's, and nobody else's to read")


def _address(endpoint: Endpoint) -> Finding:
    with tls_probe.connected(endpoint, _PATIENCE) as connection:
        address = connection.getpeername()[0]
    known = "" if address == endpoint.host else f", which is {address},"
    return Finding("address", f"{endpoint.addr}{known} takes connections")


def _tls(endpoint: Endpoint) -> Finding:
    certificate = tls_probe.probe(endpoint, _PATIENCE)
    told = f"TLS 1.3 with a certificate for {tls_probe.hosts(certificate)}"
    return _dated("tls", told, certificate, "have the agent's certificate renewed")


def _dated(check: str, told: str, certificate: x509.Certificate, fix: str) -> Finding:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    told = f"{told}, until {_day(ends)}"
    if ends - datetime.now(UTC) < _LAST_PART * (ends - begins):
        return warning(check, f"{told}, which is soon", fix)
    return Finding(check, told)


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _agent(endpoint: Endpoint, named: str) -> Iterator[Finding]:
    # Errors are told once, by this program.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        with client.connect(endpoint, timeout=_PATIENCE, request_id=named) as agent:
            before = time.time()
            info = agent.agent_info()
            yield from doctor_agent.findings(info, before, time.time())
    except CallFailed as error:
        yield _refusal(error)
    except JobWorkerError as error:
        yield failure("agent", str(error))


def _refusal(error: CallFailed) -> Finding:
    match error.code:
        case "UNAUTHENTICATED":
            told = f"it does not let you in: {error}"
            return failure("agent", told, "mend that, or have a new certificate issued")
        case "PERMISSION_DENIED":
            told = f"it lets you in, and does not tell of itself: {error}"
            return warning("agent", told, "other calls may be allowed; its policy says which")
        case "UNIMPLEMENTED":
            return failure("agent", "a gRPC server answers which is no jobworker agent", "check host and port")
        case _:
            return failure("agent", str(error), "look at its log, and run `worker-agent doctor` on its host")
