"""The part of the client that needs grpc, behind `jobworker.client.connect`."""
