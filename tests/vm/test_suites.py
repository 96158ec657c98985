"""The suites that run anywhere, as root in a machine of a known kind."""

from __future__ import annotations

import pytest

from support.guest import Guest

pytestmark = pytest.mark.timeout(7200)

# What depends on the host. The client's tests start a Python each, which takes many seconds in emulation.
SUITES = {
    "unit": (
        "tests/unit",
        "--ignore-glob=*/test_cli_*",
        "--ignore-glob=*/test_client_*",
        "--ignore-glob=*/test_pki_*",
    ),
    "limits": ("tests/system/test_limits.py",),
    "sandbox": ("tests/security/test_sandbox.py",),
    "system": (
        "tests/system",
        "--ignore=tests/system/test_limits.py",
        "--ignore=tests/system/test_worker_client.py",
    ),
}


@pytest.mark.parametrize("suite", SUITES)
def test_suite(machine: Guest, request: pytest.FixtureRequest, suite: str) -> None:
    if machine.kind.container:
        pytest.skip("the host runs these suites on the same kernel")
    guest: Guest = request.getfixturevalue("guest")
    assert guest.run_suite(*SUITES[suite], name=suite) == 0, f"see build/vms/{guest.name}-{suite}.txt"
