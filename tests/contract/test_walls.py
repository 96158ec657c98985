"""The walls between the folders, and what the root processes have loaded."""

from __future__ import annotations

import os
import subprocess
import sys

import jobworker

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
BIN = os.path.dirname(sys.executable)
PACKAGE = os.path.dirname(jobworker.__file__)


def test_imports_run_one_way_only() -> None:
    run = subprocess.run(
        [os.path.join(BIN, "lint-imports")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout


def loaded_by(module: str, program: str) -> set[str]:
    """The modules that a root process has loaded once it is put together, started as the keeper starts it."""
    # Not runpy, which would load half of the library itself.
    script = (
        "import sys\n"
        f"space = {{'__name__': 'not_main', '__file__': {program!r}}}\n"
        f"exec(compile(open({program!r}).read(), {program!r}, 'exec'), space)\n"
        f"assert {module!r} in sys.modules\n"
        "print('\\n'.join(sys.modules))\n"
    )
    command = [sys.executable, "-I", "-S", "-E", "-c", script]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def foreign(modules: set[str]) -> set[str]:
    own = {name for name in modules if name.split(".")[0] in ("jobworker", "__main__")}
    return {name for name in modules - own if name.split(".")[0] not in sys.stdlib_module_names}


def test_the_supervisor_has_loaded_the_standard_library_only() -> None:
    modules = loaded_by("jobworker.supervisor.supervisor", os.path.join(PACKAGE, "supervisor", "__main__.py"))
    assert foreign(modules) == set()
    assert not modules & {
        "asyncio",
        "threading",
        "subprocess",
        "ssl",
        "logging",
        "argparse",
        "hashlib",
        "yaml",
        "grpc",
    }
    assert not {
        name for name in modules if name.startswith(("jobworker.api", "jobworker.gateway", "jobworker.cli"))
    }


def test_the_keeper_has_loaded_next_to_nothing() -> None:
    modules = loaded_by("jobworker.keeper.keeper", os.path.join(PACKAGE, "keeper", "__main__.py"))
    assert foreign(modules) == set()
    ours = {name for name in modules if name.startswith("jobworker.")}
    assert ours == {
        "jobworker.keeper",
        "jobworker.keeper.parking",
        "jobworker.keeper.upgrade",
        "jobworker.wire.handover",
        "jobworker.wire.service_manager",
        "jobworker.keeper.keeper",
        "jobworker.wire",
        "jobworker.wire.keeping",
        "jobworker.wire.sockets",
        "jobworker.root_side",
        "jobworker.wire.stderr",
    }
    assert not modules & {"dataclasses", "json", "typing", "inspect", "ctypes"}
