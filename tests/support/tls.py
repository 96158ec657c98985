"""TLS as openssl speaks it."""

from __future__ import annotations

import re
import subprocess

from support.certs import Files

OLD_VERSIONS = ("-tls1", "-tls1_1", "-tls1_2")


def openssl(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["openssl", *arguments]
    return subprocess.run(
        command, input="", capture_output=True, text=True, errors="replace", timeout=60, check=False
    )


def s_client(address: str, files: Files, *options: str) -> str:
    """What openssl says of a connection with a certificate."""
    pair = ("-CAfile", files.ca, "-cert", files.cert, "-key", files.key)
    said = openssl("s_client", "-connect", address, "-alpn", "h2", *pair, *options)
    return said.stdout + said.stderr


def negotiated(said: str) -> str | None:
    """The version of TLS that they have agreed on; None if they have not."""
    found = re.search(r"^New, (TLSv[\d.]+), Cipher is (?!\(NONE\))", said, re.MULTILINE)
    return found[1] if found else None
