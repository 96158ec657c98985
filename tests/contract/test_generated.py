"""The contract in proto/ and the code that was generated from it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = os.path.dirname(sys.executable)
COMMITTED = ROOT / "agent" / "jobworker" / "api" / "v1"
PROTOS = sorted((ROOT / "proto").rglob("*.proto"))


def test_the_generated_code_is_what_the_contract_generates(tmp_path: Path) -> None:
    outputs = [f"--{kind}={tmp_path}" for kind in ("python_out", "grpc_python_out")]
    typed = [f"--{kind}=quiet:{tmp_path}" for kind in ("mypy_out", "mypy_grpc_out")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}", *outputs, *typed]
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    subprocess.run([*command, *map(str, PROTOS)], check=True, env=environment)
    fresh = {path.name: path.read_text() for path in (tmp_path / "jobworker" / "api" / "v1").iterdir()}
    committed = {path.name: path.read_text() for path in COMMITTED.iterdir() if path.suffix in (".py", ".pyi")}
    del committed["__init__.py"]
    assert committed == fresh, "run `make proto` and commit the result"


@pytest.mark.parametrize("check", [["lint"], ["format", "--diff", "--exit-code"]], ids=" ".join)
def test_buf(check: list[str]) -> None:
    run = subprocess.run([f"{BIN}/buf", *check, str(ROOT / "proto")], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
