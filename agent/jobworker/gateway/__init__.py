"""The unprivileged end that faces the network: TLS, who may do what, validation, streaming.

It holds no job and no cgroup: everything about jobs it asks of the supervisor over a socket, so it can be
restarted at any time and no job notices. From the network inwards: `server`, `gate` (with `certificates`,
`access`, `requests`, `status`), `servicer` (with `incoming`, `outgoing`), then `mirror` and `output`, which stand
on `link`.
"""

import os

from jobworker import tls13

tls13.require()
# grpc's core writes a line in a form of its own for each handshake that fails, which anyone can make it do.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
