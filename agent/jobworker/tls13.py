"""TLS 1.3 as the only version, and no fork handlers: what grpc must be told before it is imported.

grpc's Python API has no minimum TLS version. Its core reads GRPC_SSL_CIPHER_SUITES once, when it is loaded,
and the list holds for TLS 1.2 alone. The one suite named here needs a pre-shared key, which neither side
ever has: so TLS 1.2 has nothing to agree on, while TLS 1.3, whose suites are fixed, is untouched.

grpc's fork handlers abort children of a process with live streams; neither client nor gateway forks.

Whoever imports grpc calls `require` before; packages do so in their `__init__`, which runs before any module
of theirs.
"""

from __future__ import annotations

import os
import sys

_ENVIRONMENT = {
    "GRPC_SSL_CIPHER_SUITES": "ECDHE-PSK-CHACHA20-POLY1305",
    "GRPC_ENABLE_FORK_SUPPORT": "0",
}


def require() -> None:
    """Let grpc speak TLS 1.3 only, in this process; whatever the environment said before.

    Raises:
        RuntimeError: grpc is there already and was loaded without this, so it would accept TLS 1.2.
    """
    if "grpc" in sys.modules and any(os.environ.get(k) != v for k, v in _ENVIRONMENT.items()):
        problem = "grpc was imported before jobworker.tls13.require(): it would accept TLS 1.2"
        raise RuntimeError(f"{problem}; import jobworker.client, or call that, before anything that imports grpc")
    os.environ.update(_ENVIRONMENT)
