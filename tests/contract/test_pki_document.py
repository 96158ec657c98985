"""docs/pki.md: its commands run as they stand, its fields are what the certificates have."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
from pathlib import Path

from jobworker.identity import DEFAULT_ROLE_OID, Role, encode_role
from support.pki import document

BIN = os.path.dirname(sys.executable)


def test_the_commands_run_as_they_stand(tmp_path: Path) -> None:
    script = "\n".join(re.findall(r"^```sh\n(.*?)^```$", document(), re.DOTALL | re.MULTILINE))
    assert script.count("worker-pki ") >= 12
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env={"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "accepts spiffe://example.org/user/alice as WRITER" in run.stdout
    assert "build7.example.org.pem: OK" in run.stdout
    assert "pki/users/alice.pem: not due" in run.stdout
    assert (tmp_path / "passphrase").read_text().strip() not in run.stdout + run.stderr


def test_the_roles_as_bytes() -> None:
    for role in Role:
        assert f"`{encode_role(role).hex(' ')}`" in document()
        assert f"`{base64.b64encode(encode_role(role)).decode()}` for {role.value}" in document()
    assert f"{DEFAULT_ROLE_OID} = ASN1:UTF8String:WRITER" in document()
