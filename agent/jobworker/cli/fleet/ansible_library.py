"""An inventory through ansible-core's own loader, if this Python has it.

It is no dependency, and imported only here and only when there is an inventory to read. What it has over the
command `ansible-inventory`: variables that are templates are filled in.
"""

from __future__ import annotations

import importlib
from typing import Any

from jobworker.cli.fleet.inventory import VARIABLES
from jobworker.errors import InvalidField


def read(path: str) -> dict[str, Any] | None:
    """The inventory in the form of `ansible-inventory --list`; `None` where there is no ansible-core.

    Raises:
        InvalidField: Ansible does not understand it.
    """
    try:
        errors = importlib.import_module("ansible.errors")
        plugins = importlib.import_module("ansible.plugins.loader")
        dataloader = importlib.import_module("ansible.parsing.dataloader")
        manager = importlib.import_module("ansible.inventory.manager")
        variables = importlib.import_module("ansible.vars.manager")
        template = importlib.import_module("ansible.template")
    except ImportError:
        return None
    try:
        plugins.init_plugin_loader()
        loader = dataloader.DataLoader()
        inventory = manager.InventoryManager(loader=loader, sources=[path])
        known = variables.VariableManager(loader=loader, inventory=inventory)
        hostvars = {}
        for host in inventory.hosts.values():
            every = known.get_vars(host=host, include_hostvars=False)
            fill = template.Templar(loader=loader, variables=every).template
            hostvars[host.name] = {name: _plain(fill(every[name])) for name in VARIABLES if name in every}
    except errors.AnsibleError as error:
        raise InvalidField("--inventory", f"{path:.300} is not understood: {error!s:.500}") from None
    groups = {name: _group(group) for name, group in inventory.groups.items()}
    return {"_meta": {"hostvars": hostvars}, **groups}


def _group(group: Any) -> dict[str, Any]:
    hosts, children = ([str(each.name) for each in found] for found in (group.hosts, group.child_groups))
    return {"hosts": hosts, "children": children}


def _plain(value: Any) -> Any:
    """The text alone: Ansible's own kinds of it carry where they come from."""
    return str(value) if isinstance(value, str) else value
