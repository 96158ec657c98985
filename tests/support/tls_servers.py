"""Servers that are no agents, or have the wrong certificates, for clients that have to tell what is wrong."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import grpc

from support import certs
from support.certs import SERVER_AUTH, Files, Pair, Recipe

SERVER = Recipe("localhost", uris=(), hosts=("localhost", "127.0.0.1"), usage=SERVER_AUTH, roles=())


@contextlib.contextmanager
def serving(talk: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that has this talk with each of its clients, one after the other."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                talk(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@contextlib.contextmanager
def tls_server(files: Files, configure: Callable[[ssl.SSLContext], None] = lambda _: None) -> Iterator[str]:
    """OpenSSL's server: it asks for a client certificate and says by an alert what it has against one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    context.load_verify_locations(files.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])
    configure(context)

    def talk(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secured:
            secured.recv(1)

    with serving(talk) as addr:
        yield addr


@contextlib.contextmanager
def grpc_server(files: Files | None = None) -> Iterator[str]:
    """grpc's server, the one that agents have: it only ends the connection."""
    files = files or certs.dev_pki().files("server")
    ca, cert, key = (Path(path).read_bytes() for path in (files.ca, files.cert, files.key))
    server = grpc.server(futures.ThreadPoolExecutor(1))
    credentials = grpc.ssl_server_credentials([(key, cert)], ca, require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def server_files(directory: Path, recipe: Recipe, issuer: Pair | None = None) -> Files:
    return certs.make(recipe, issuer or certs.dev_pki().pair("ca")).save(directory, "odd-server")


def client_files(directory: Path, recipe: Recipe, issuer: Pair | None = None) -> Files:
    return certs.make(recipe, issuer or certs.dev_pki().pair("ca")).save(directory, "odd-client")
