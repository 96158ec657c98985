"""Messages of a stream, as protobuf's own library reads them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.gateway import pieces

# A length takes a byte more from each of these on.
EDGES = (0, 1, 2**7, 2**14, 2**21)


@given(
    offset=st.integers(0, 2**64 - 1),
    size=st.one_of(st.integers(0, 300), *(st.integers(max(0, edge - 20), edge + 20) for edge in EDGES)),
    source=st.sampled_from(tuple(pieces.SOURCES.values())),
    seconds=st.integers(0, 2**40),
)
def test_a_chunk_is_what_protobuf_makes_of_it(
    offset: int, size: int, source: pb.OutputSource.ValueType, seconds: int
) -> None:
    head = pb.OutputChunk(offset=offset, source=source)
    head.time.seconds = seconds
    read = pb.StreamResponse.FromString(pieces.chunk(head, bytes(size)))
    head.data = bytes(size)
    assert read == pb.StreamResponse(chunk=head)
