"""A handshake with OpenSSL in place of grpc's BoringSSL, made only to learn why the other one failed.

In TLS 1.3 the client is done before the server has looked at the client's certificate, so a refusal comes
with the first read. OpenSSL's servers send an alert that names the cause; grpc's only end the connection.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
from datetime import UTC, datetime
from typing import NoReturn

from cryptography import x509

from jobworker.client import tls_files
from jobworker.client.endpoint import Endpoint
from jobworker.errors import TlsProblem
from jobworker.unreadable import UNREADABLE

_ALPN = "h2"
_LABEL = r"[A-Za-z0-9_-]{1,63}"
_SERVER_NAME = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}(?:\.{_LABEL})*|[0-9A-Fa-f]{{0,4}}:[0-9A-Fa-f:.]+)")
_MAX_SHOWN = 300
_INSTANT = 0.001

# Reasons of ssl.SSLError: OpenSSL's names for what it met (openssl/sslerr.h).
_NOT_TLS = {
    "HTTP_REQUEST",
    "PACKET_LENGTH_TOO_LONG",
    "RECORD_LAYER_FAILURE",
    "UNEXPECTED_MESSAGE",
    "WRONG_VERSION_NUMBER",
}
_NOT_TLS13 = {"TLSV1_ALERT_PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL"}
_NO_CERTIFICATE = "TLSV13_ALERT_CERTIFICATE_REQUIRED"
_REFUSALS = {
    "TLSV1_ALERT_UNKNOWN_CA": ("it does not trust that CA", "use a certificate from the CA that it trusts"),
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": ("it finds it expired", "compare its clock with this host's"),
    "SSLV3_ALERT_CERTIFICATE_REVOKED": ("it was revoked", "have a new one issued"),
}

# Results of verification (openssl/x509_vfy.h): no issuer to be found, or one whose signature is wrong.
_UNTRUSTED = {2, 7, 18, 19, 20, 21}
_DATES = {9, 10}
_NAMES = {62, 64}


def probe(endpoint: Endpoint, seconds: float) -> x509.Certificate:
    """Connect, shake hands, wait for the server's first byte.

    Args:
        endpoint: with an address that is HOST:PORT.
        seconds: how long to wait for the three.

    Returns:
        The server's certificate, verified.

    Raises:
        TlsProblem: what stands in the way.
    """
    if not _SERVER_NAME.fullmatch(_name(endpoint)):
        raise TlsProblem(f"{_name(endpoint)!r:.80} is not a server's name", "correct --server-name")
    deadline = time.monotonic() + seconds
    with connected(endpoint, seconds) as plain, _handshaken(endpoint, plain, deadline) as tls:
        if tls.selected_alpn_protocol() != _ALPN:
            problem = f"{endpoint.addr} speaks TLS, but not gRPC: it offers no HTTP/2"
            raise TlsProblem(problem, "check host and port")
        tls.settimeout(_left(deadline))
        _await_first_byte(endpoint, tls)
        return x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")


def _left(deadline: float) -> float:
    # At 0 a socket would not wait at all, and say so by another error.
    return max(_INSTANT, deadline - time.monotonic())


def connected(endpoint: Endpoint, seconds: float) -> socket.socket:
    """A connection without TLS. Raises TlsProblem if there is none to be had."""
    try:
        return socket.create_connection((endpoint.host, endpoint.port), seconds)
    except (socket.gaierror, UnicodeError):
        problem, fix = f"the host {endpoint.host} is not known", "check the name, and that it resolves here"
    except ConnectionRefusedError:
        problem, fix = f"nobody listens at {endpoint.addr}", "start the agent there, or correct the address"
    except TimeoutError:
        problem, fix = f"{endpoint.addr} does not answer", "check the address, the network, the firewalls"
    except OSError as error:
        problem, fix = f"{endpoint.addr} cannot be reached: {error.strerror}", "check address and network"
    raise TlsProblem(problem, fix)


def _handshaken(endpoint: Endpoint, plain: socket.socket, deadline: float) -> ssl.SSLSocket:
    context = _context(endpoint)
    try:
        # Of a peer that has gone already, the ssl module would leave the socket open.
        plain.getpeername()
        plain.settimeout(_left(deadline))
        return context.wrap_socket(plain, server_hostname=_name(endpoint))
    except ssl.SSLCertVerificationError as error:
        _explain_distrust(endpoint, error, deadline)
    except ssl.SSLError as error:
        _explain_break(endpoint, error.reason or "")
    except TimeoutError:
        problem = f"{endpoint.addr} takes the connection, but does not answer a TLS handshake"
        raise TlsProblem(problem, "check host and port; an overloaded agent does this too") from None
    except OSError as error:
        _explain_break(endpoint, error.strerror or "")


def _name(endpoint: Endpoint) -> str:
    return endpoint.server_name or endpoint.host


def _context(endpoint: Endpoint) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # What OpenSSL finds too weak, but grpc does not, is not why grpc failed.
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.set_alpn_protocols([_ALPN])
    try:
        context.load_verify_locations(endpoint.ca)
        if endpoint.cert:
            context.load_cert_chain(endpoint.cert, endpoint.key)
    except OSError as error:
        problem = f"OpenSSL cannot use {endpoint.ca}, {endpoint.cert} and {endpoint.key}: {error}"
        raise TlsProblem(problem, "have them issued anew") from None
    return context


def _explain_break(endpoint: Endpoint, reason: str) -> NoReturn:
    if reason in _NOT_TLS:
        problem = f"{endpoint.addr} does not speak TLS"
        raise TlsProblem(problem, "check host and port; an agent always speaks it")
    if reason in _NOT_TLS13:
        problem = f"{endpoint.addr} does not speak TLS 1.3"
        raise TlsProblem(problem, "check host and port; an agent speaks nothing older")
    told = reason.lower().replace("_", " ")
    problem = f"{endpoint.addr} broke off the TLS handshake ({told})"
    raise TlsProblem(problem, "check host and port, and look at the server's log")


def _explain_distrust(endpoint: Endpoint, error: ssl.SSLCertVerificationError, deadline: float) -> NoReturn:
    certificate, subject = _certificate(endpoint, _left(deadline)), f"the server certificate of {endpoint.addr}"
    if error.verify_code in _NAMES:
        problem = f"{subject} is for {hosts(certificate)}, not for {_name(endpoint)}"
        raise TlsProblem(problem, "connect by one of these names, or give one with --server-name")
    if error.verify_code in _UNTRUSTED:
        problem = f"{subject} was issued by {_issuer(certificate)}, which is not the CA in {endpoint.ca}"
        raise TlsProblem(problem, "give this server's own CA with --ca")
    if error.verify_code in _DATES:
        tls_files.check_dates(certificate, subject, datetime.now(UTC), "give the agent a new one")
    problem = f"{subject} is not accepted: {error.verify_message}"
    raise TlsProblem(problem, "give the agent a certificate made for servers")


def _certificate(endpoint: Endpoint, seconds: float) -> x509.Certificate:
    """The server's certificate, unverified: to tell what is wrong with it, and for nothing else."""
    context = _context(endpoint)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            connected(endpoint, seconds) as plain,
            context.wrap_socket(plain, server_hostname=_name(endpoint)) as tls,
        ):
            return x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")
    except (OSError, *UNREADABLE):
        problem = f"{endpoint.addr} showed a certificate that is not accepted, and at a second look none"
        raise TlsProblem(problem, "look at the server's log") from None


def hosts(certificate: x509.Certificate) -> str:
    """The names that a server's certificate is for, in words."""
    try:
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        addresses = map(str, san.get_values_for_type(x509.IPAddress))
        return _shown(", ".join([*san.get_values_for_type(x509.DNSName), *addresses])) or "no host at all"
    except (x509.ExtensionNotFound, *UNREADABLE):
        return "no host at all"


def _issuer(certificate: x509.Certificate) -> str:
    try:
        return _shown(certificate.issuer.rfc4514_string())
    except UNREADABLE:
        return "an issuer whose name cannot be read"


def _shown(text: str) -> str:
    """Text of a certificate that nobody has verified, made harmless for a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text[:_MAX_SHOWN])


def _await_first_byte(endpoint: Endpoint, tls: ssl.SSLSocket) -> None:
    """A gRPC server's first frame says that it has accepted the client; mere silence says nothing."""
    try:
        first = tls.recv(1)
    except TimeoutError:
        return
    except ssl.SSLError as error:
        _explain_refusal(endpoint, error.reason or "")
    except OSError:
        first = b""
    if not first:
        _explain_refusal(endpoint, "")


def _explain_refusal(endpoint: Endpoint, alert: str) -> NoReturn:
    if alert == _NO_CERTIFICATE or not endpoint.cert:
        raise TlsProblem(f"{endpoint.addr} wants a client certificate", "give one with --cert and --key")
    shown = f"the client certificate {endpoint.cert}, issued by {_issuer(tls_files.client_chain(endpoint)[-1])}"
    if alert in _REFUSALS:
        problem, fix = _REFUSALS[alert]
        raise TlsProblem(f"{endpoint.addr} refuses {shown}: {problem}", fix)
    told = f" ({alert.lower().replace('_', ' ')})" if alert else ""
    ended = f"{endpoint.addr} ended the connection on seeing {shown}{told}"
    if not tls_files.issued_within(endpoint):
        problem = f"{ended}: that is not the CA in {endpoint.ca}, which issued the server's"
        raise TlsProblem(problem, "use a certificate from the server's CA")
    fix = "the server's log says why; compare its clock with this host's, and the CAs it trusts with yours"
    raise TlsProblem(ended, fix)
