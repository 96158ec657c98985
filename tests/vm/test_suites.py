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
    "sandbox": ("tests/security/test_sandbox.py", "tests/security/test_strict.py"),
    "root": (
        "tests/security/test_policy_reload.py",
        "tests/security/test_policy_root.py",
        "tests/security/test_root_socket.py",
        # Has a start hang, which is given up before an emulated machine has sent what is to come meanwhile.
        "-k",
        "not in_flight",
    ),
    # A gibibyte of output takes long in emulation, and is the same bytes on any kernel.
    "load": (
        "tests/load/test_ends.py",
        "tests/load/test_restarts.py",
        "tests/load/test_volume.py",
        "-k",
        "not gibibyte",
    ),
    "system": (
        "tests/system",
        "--ignore=tests/system/test_limits.py",
        "--ignore=tests/system/test_worker_client.py",
        # Without what is installed for traces alone.
        "--ignore-glob=*/test_tracing*",
    ),
}
# Tests of the root side that are in none, and why.
LEFT_OUT = {
    "tests/security/test_audit_denials.py": "what TLS refuses is refused alike on any kernel",
    "tests/security/test_firewall.py": "tests/fleet/test_firewall.py has the rules on the hosts themselves",
    "tests/security/test_policy_calls.py": "rules are weighed alike on any kernel",
}


@pytest.mark.parametrize("suite", SUITES)
def test_suite(machine: Guest, request: pytest.FixtureRequest, suite: str) -> None:
    if machine.kind.container:
        pytest.skip("the host runs these suites on the same kernel")
    guest: Guest = request.getfixturevalue("guest")
    assert guest.run_suite(*SUITES[suite], name=suite) == 0, f"see build/vms/{guest.name}-{suite}.txt"
