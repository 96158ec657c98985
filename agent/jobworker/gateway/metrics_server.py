"""GET /metrics over HTTP/1.1, one request per connection, and no more of HTTP than that takes (RFC 9112)."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from http import HTTPStatus

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.registry import Collector

from jobworker.errors import InvalidField, PkiProblem
from jobworker.gateway import credentials
from jobworker.gateway.credentials import Credentials
from jobworker.gateway.kept import Kept
from jobworker.settings.schema import Settings, TlsSettings

_MAX_REQUEST_BYTES = 8 * 1024
_MAX_CONNECTIONS = 16
# For the handshake, and once more for request and answer together.
_PATIENCE_SECONDS = 5.0


async def serve(settings: Settings, own: Credentials, collector: Collector) -> str:
    """Serve in the running loop for as long as it runs; HOST:PORT.

    Raises:
        InvalidField: the address cannot be had.
        PkiProblem: the certificates are for development, and the address is not.
    """
    wanted = settings.metrics
    credentials.check_listen(wanted.listen, own, settings.tls)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    host, _, port = wanted.listen.rpartition(":")
    tls = None if wanted.plain_http else _tls(settings.tls)
    try:
        server = await asyncio.start_server(
            _Responder(registry).respond,
            host.strip("[]"),
            int(port),
            limit=_MAX_REQUEST_BYTES,
            ssl=tls,
            ssl_handshake_timeout=_PATIENCE_SECONDS if tls else None,
            ssl_shutdown_timeout=_PATIENCE_SECONDS if tls else None,
        )
    except OSError as error:
        problem = f"{wanted.listen} cannot be had: {error.strerror}"
        raise InvalidField("metrics.listen", problem, "127.0.0.1:7444") from None
    return f"{host}:{server.sockets[0].getsockname()[1]}"


def _tls(tls: TlsSettings) -> ssl.SSLContext:
    """A context that hands each handshake over to one made of what the files hold then."""
    contexts = Kept("the metrics' certificates", (*credentials.paths(tls), tls.crl), lambda: _context(tls))

    def choose(handshake: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        handshake.context = contexts.get()

    first = contexts.get()
    # It is called for clients that name no server as well.
    first.sni_callback = choose
    return first


def _context(tls: TlsSettings) -> ssl.SSLContext:
    own = credentials.load(tls)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    # No session outlives its certificate.
    context.num_tickets = 0
    context.load_verify_locations(cadata=own.ca.decode())
    try:
        context.load_cert_chain(tls.cert, tls.key)
        if tls.crl:
            context.load_verify_locations(tls.crl)
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    except OSError as error:
        raise PkiProblem(tls.cert, f"OpenSSL cannot use it, its key or {tls.crl or 'its CA'}: {error}") from None
    return context


@dataclass(slots=True)
class _Responder:
    registry: CollectorRegistry
    connections: int = 0

    async def respond(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.connections >= _MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self.connections += 1
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                request = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._answer(request))
                writer.close()
                await writer.wait_closed()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError, OSError):
            # Not a scraper, or one that is gone or stuck.
            writer.transport.abort()
        finally:
            self.connections -= 1

    def _answer(self, request: bytes) -> bytes:
        words = request.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or words[2] not in (b"HTTP/1.1", b"HTTP/1.0"):  # noqa: PLR2004 - RFC 9112, 3
            return _response(HTTPStatus.BAD_REQUEST)
        method, target, _ = words
        if target.split(b"?", 1)[0] != b"/metrics":
            return _response(HTTPStatus.NOT_FOUND)
        if method not in (b"GET", b"HEAD"):
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, allow="GET, HEAD")
        body = generate_latest(self.registry)
        return _response(HTTPStatus.OK, body, head=method == b"HEAD", content_type=CONTENT_TYPE_LATEST)


def _response(status: HTTPStatus, body: bytes = b"", *, head: bool = False, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name.replace('_', '-').title()}: {value}" for name, value in headers.items()]
    return "\r\n".join((*lines, "", "")).encode() + (b"" if head else body)
