"""The gRPC server: mutual TLS, and bounds on what a peer may use."""

from __future__ import annotations

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2_grpc  # type: ignore[import-untyped] # has no types

from jobworker.api.v1 import job_worker_service_pb2_grpc as api
from jobworker.errors import InvalidField
from jobworker.gateway.credentials import Credentials
from jobworker.gateway.gate import Gate
from jobworker.gateway.health import Health
from jobworker.gateway.kept import Kept
from jobworker.gateway.quotas import MAX_HELD_BACK, MAX_UNDER_WAY
from jobworker.gateway.servicer import JobWorker

# Beside the calls that are let in, those that are being refused need room: at this bound grpc refuses all alike.
_MAX_CALLS = MAX_UNDER_WAY + MAX_HELD_BACK + 1_024

_OPTIONS: tuple[tuple[str, int], ...] = (
    # Else a second gateway would take half of the connections.
    ("grpc.so_reuseport", 0),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_allowed_incoming_connections", 4_096),
    # What one connection can have wait inside grpc, in front of others.
    ("grpc.max_concurrent_streams", 256),
    # A job's strings hold 256 KiB together.
    ("grpc.max_receive_message_length", 1024 * 1024),
    # The windows for what peers send stay at this: without the probe they do not grow by themselves.
    ("grpc.http2.lookahead_bytes", 64 * 1024),
    ("grpc.http2.bdp_probe", 0),
    # Calls that have not got to the gate yet: beyond the first number grpc cancels some, whoever's, and beyond the
    # other all. With the usual 1,000 a flood from a few connections would reach that.
    ("grpc.server.max_pending_requests", 8_192),
    ("grpc.server.max_pending_requests_hard_limit", 16_384),
    ("grpc.max_metadata_size", 8 * 1024),
    ("grpc.absolute_max_metadata_size", 16 * 1024),
    # Dead peers are found; peers may look for a dead agent every ten seconds and no more often.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 2),
    ("grpc.max_connection_idle_ms", 3_600_000),
)

# What to do where an address cannot be had.
ELSEWHERE = "stop what listens there (ss -ltnp), or give another address"


class _Handshakes:
    """What grpc asks at each of them, in threads of its own."""

    def __init__(self, credentials: Kept[Credentials]) -> None:
        self._credentials = credentials
        self._used = credentials.get()
        self.first = _configuration(self._used)

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """What to use from now on; None for what was used before."""
        now = self._credentials.get()
        if now is self._used:
            return None
        self._used = now
        return _configuration(now)


def _configuration(own: Credentials) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(own.key, own.cert)], own.ca)


def make(gate: Gate, jobs: JobWorker, health: Health) -> aio.Server:
    """A server with these services behind the gate; it is not bound yet."""
    server = aio.server(interceptors=(gate,), options=_OPTIONS, maximum_concurrent_rpcs=_MAX_CALLS)
    api.add_JobWorkerServiceServicer_to_server(jobs, server)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    return server


def bind(server: aio.Server, listen: str, credentials: Kept[Credentials]) -> str:
    """Listen on HOST:PORT, with each handshake by the credentials of that moment.

    Returns:
        the address with the port that was taken.

    Raises:
        InvalidField: the address cannot be had.
    """
    handshakes = _Handshakes(credentials)
    tls = grpc.dynamic_ssl_server_credentials(
        handshakes.first,
        handshakes.changed,  # type: ignore[arg-type] # None is for no change, as grpc has it
        require_client_authentication=True,
    )
    try:
        port = server.add_secure_port(listen, tls)
    except RuntimeError:
        problem = f"{listen} cannot be had: it is in use, or not an address of this host; {ELSEWHERE}"
        raise InvalidField("listen", problem) from None
    return f"{listen.rpartition(':')[0]}:{port}"
