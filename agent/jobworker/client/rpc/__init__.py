"""The part of the client that needs grpc, behind `jobworker.client.connect`."""

from jobworker import tls13

tls13.require()
