"""Who reads an inventory: ansible-core where it is there, and nobody in its place.

Inventories are a language of their own, with plugins for clouds, variables in many places, vaults. What is
understood here is the one form that `ansible-inventory --list` makes of all that.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
from typing import Any

from jobworker.cli.fleet import ansible_library
from jobworker.cli.fleet.inventory import Inventory, of_list
from jobworker.errors import InvalidField

_COMMAND = "ansible-inventory"
# Ten thousand hosts with 6 KiB of variables each.
_MAX_BYTES = 64 * 1024 * 1024
_MAX_TOLD = 500


def read(path: str) -> Inventory:
    """The inventory at a path.

    Args:
        path: whatever Ansible takes, or else a file `*.json` that `ansible-inventory --list` has printed.

    Raises:
        InvalidField: it cannot be read, by whom it would have to be.
    """
    # With a comma it is a list of hosts itself.
    if "," not in path and not os.path.exists(path):
        raise InvalidField("--inventory", f"{path:.300} does not exist")
    if path.endswith(".json") and (printed := _printed(path)):
        return of_list(path, printed)
    if loaded := ansible_library.read(path):
        return of_list(path, loaded, in_order=True)
    return of_list(path, _by_command(path))


def _printed(path: str) -> Any:
    """What `ansible-inventory --list` has printed into a file; `None` for an inventory that is JSON itself."""
    try:
        with open(path, "rb") as file:
            told = _parsed(path, file.read(_MAX_BYTES + 1))
    except OSError as error:
        raise InvalidField("--inventory", f"{path:.300} cannot be read: {error.strerror}") from None
    return told if isinstance(told, dict) and "_meta" in told else None


def _by_command(path: str) -> Any:
    command = _found()
    if not command:
        problem = (
            f"{path:.300} needs ansible-core to be read, which is neither in this Python nor in the PATH; "
            f"install it, or give what `{_COMMAND} -i {path:.300} --list` prints elsewhere as a file *.json"
        )
        raise InvalidField("--inventory", problem)
    words = [command, "--inventory", path, "--list"]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout  # noqa: S101 - asked for above
        told = process.stdout.read(_MAX_BYTES + 1)
        # Beyond the bound nobody reads on.
        process.stdout.close()
        status = process.wait()
    if len(told) <= _MAX_BYTES and status:
        raise InvalidField("--inventory", f"`{' '.join(words):.{_MAX_TOLD}}` failed with exit code {status}")
    return _parsed(path, told)


def _found() -> str | None:
    """The command beside this program, or else in the PATH."""
    beside = os.path.join(sysconfig.get_path("scripts"), _COMMAND)
    return beside if os.access(beside, os.X_OK) else shutil.which(_COMMAND)


def _parsed(path: str, data: bytes) -> Any:
    if len(data) > _MAX_BYTES:
        raise InvalidField(path, f"is larger than {_MAX_BYTES} bytes")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidField(path, f"is not JSON: {error!s:.200}") from None
