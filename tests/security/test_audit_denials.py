"""Who is not let in is in the audit trail, with the number of the certificate that was shown."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from jobworker.api.v1 import job_worker_service_pb2 as pb
from support import gateway
from support.certs import odd_clients
from support.link import DEADLINE
from support.root_side import RootSide
from support.trails import events
from support.waiting import until

pytestmark = pytest.mark.root


def test_each_odd_certificate(side: RootSide, tmp_path: Path) -> None:
    odd = odd_clients()
    with gateway.gateway(tmp_path, gateway.behind(side.settings)) as running:
        for name, pair in odd.items():
            with running.stub(pair.save(tmp_path, name)) as stub, pytest.raises(grpc.RpcError):
                stub.Start(pb.StartRequest(command="true"))
        reached = [call for call in running.calls("/Start") if call["code"] == "UNAUTHENTICATED"]
        assert len(reached) > 5

        def told() -> set[str]:
            lines = events(side.state_dir, "calls", damaged=True)
            return {line["call"] for line in lines if line["event"] == "call" and line["decision"] == "deny"}

        until(lambda: {call["call"] for call in reached} <= told(), True, DEADLINE)
    serials = {f"{pair.certificate.serial_number:x}" for pair in odd.values()}
    lines = [line for line in events(side.state_dir, "calls") if line["event"] == "call"]
    assert {line["serial"] for line in lines} <= serials
    assert {line["reason"] for line in lines} == {"UNAUTHENTICATED"}
    assert len({line["serial"] for line in lines}) == len(reached)
    assert all("role" not in line for line in lines)
