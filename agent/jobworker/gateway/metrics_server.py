"""GET /metrics over HTTP/1.1, one request per connection, and no more of HTTP than that takes (RFC 9112)."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from dataclasses import dataclass
from http import HTTPStatus

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from prometheus_client import CONTENT_TYPE_LATEST

from jobworker.errors import InvalidField, Unauthenticated
from jobworker.gateway.credentials import Credentials
from jobworker.gateway.metrics import AgentMetrics
from jobworker.gateway.passwords import Passwords
from jobworker.gateway.server import ELSEWHERE
from jobworker.gateway.trust import Trust
from jobworker.settings.schema import Settings, TlsSettings

_MAX_REQUEST_BYTES = 8 * 1024
_MAX_CONNECTIONS = 16
# For the handshake, and once more for request and answer together.
_PATIENCE_SECONDS = 5.0


async def serve(settings: Settings, trust: Trust, metrics: AgentMetrics) -> str:
    """Serve in the running loop for as long as it runs; HOST:PORT.

    Raises:
        InvalidField: the address cannot be had, or passwords not be checked here.
    """
    wanted, passwords = settings.metrics, Passwords(settings.metrics.basic_auth_users)
    host, _, port = wanted.listen.rpartition(":")
    # Without a certificate whoever has a password gets in, and nobody else.
    verify = ssl.CERT_OPTIONAL if passwords else ssl.CERT_REQUIRED
    tls = None if wanted.plain_http else _Handshakes(settings.tls, trust, verify).first
    try:
        server = await asyncio.start_server(
            _Responder(metrics, trust, passwords).respond,
            host.strip("[]"),
            int(port),
            limit=_MAX_REQUEST_BYTES,
            ssl=tls,
            ssl_handshake_timeout=_PATIENCE_SECONDS if tls else None,
            ssl_shutdown_timeout=_PATIENCE_SECONDS if tls else None,
        )
    except OSError as error:
        problem = f"{wanted.listen} cannot be had: {error.strerror}; {ELSEWHERE}"
        raise InvalidField("metrics.listen", problem) from None
    return f"{host}:{server.sockets[0].getsockname()[1]}"


class _Handshakes:
    """A context that hands each handshake over to one made of what is trusted then."""

    def __init__(self, tls: TlsSettings, trust: Trust, verify: ssl.VerifyMode) -> None:
        self._tls = tls
        self._verify = verify
        self._trust = trust
        self._used = trust.credentials.get()
        self.first = self._current = _context(tls, self._used, verify)
        # It is called for clients that name no server as well.
        self.first.sni_callback = self._choose

    def _choose(self, handshake: ssl.SSLObject, _name: str | None, _first: ssl.SSLContext) -> None:
        now = self._trust.credentials.get()
        if now is not self._used:
            # Its files may have changed again already: then the next handshake is for the better.
            with contextlib.suppress(OSError):
                self._current = _context(self._tls, now, self._verify)
                self._used = now
        handshake.context = self._current


def _context(tls: TlsSettings, own: Credentials, verify: ssl.VerifyMode) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = verify
    # No session outlives its certificate.
    context.num_tickets = 0
    authorities = x509.load_pem_x509_certificates(own.ca)
    context.load_verify_locations(cadata=b"".join(each.public_bytes(Encoding.DER) for each in authorities))
    context.load_cert_chain(tls.cert, tls.key)
    return context


@dataclass(slots=True)
class _Responder:
    metrics: AgentMetrics
    trust: Trust
    passwords: Passwords
    connections: int = 0

    async def respond(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.connections >= _MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self.connections += 1
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                request = await reader.readuntil(b"\r\n\r\n")
                known = self._check(writer.get_extra_info("ssl_object"))
                writer.write(await self._answer(request, known=known))
                writer.close()
                await writer.wait_closed()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError, OSError, Unauthenticated):
            # Not a scraper, or one that is gone or stuck.
            writer.transport.abort()
        finally:
            self.connections -= 1

    def _check(self, tls: ssl.SSLObject | None) -> bool:
        """True for who has a certificate, which TLS does not know to be revoked here."""
        shown = tls.getpeercert(binary_form=True) if tls else None
        if shown:
            self.trust.revocations.get().check(x509.load_der_x509_certificate(shown), time.time())
        return bool(shown)

    async def _answer(self, request: bytes, *, known: bool) -> bytes:
        first, *headers = request.split(b"\r\n")
        words = first.split(b" ")
        if len(words) != 3 or words[2] not in (b"HTTP/1.1", b"HTTP/1.0"):  # noqa: PLR2004 - RFC 9112, 3
            return _response(HTTPStatus.BAD_REQUEST)
        if self.passwords and not known and not await self.passwords.admit(_authorization(headers)):
            return _response(HTTPStatus.UNAUTHORIZED, www_authenticate='Basic realm="jobworker metrics"')
        method, target, _ = words
        if target.split(b"?", 1)[0] != b"/metrics":
            return _response(HTTPStatus.NOT_FOUND)
        if method not in (b"GET", b"HEAD"):
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, allow="GET, HEAD")
        body = await self.metrics.scrape()
        return _response(HTTPStatus.OK, body, head=method == b"HEAD", content_type=CONTENT_TYPE_LATEST)


def _authorization(headers: list[bytes]) -> str:
    """The value of the header of that name; empty for none, and for two."""
    fields = (header.partition(b":") for header in headers)
    found = [value for name, _, value in fields if name.lower() == b"authorization"]
    return found[0].strip().decode("latin-1") if len(found) == 1 else ""


def _response(status: HTTPStatus, body: bytes = b"", *, head: bool = False, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name.replace('_', '-').title()}: {value}" for name, value in headers.items()]
    return "\r\n".join((*lines, "", "")).encode() + (b"" if head else body)
