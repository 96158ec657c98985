"""An inventory through ansible-core's own loader, if this Python has it.

It is no dependency, and imported only here and only when there is an inventory to read. What it has over the
command `ansible-inventory`: variables that are templates are filled in.
"""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

from jobworker.cli.fleet.inventory import VARIABLES
from jobworker.errors import InvalidField

# What a vault's identity has in place of a password's file where somebody is to be asked.
_PROMPTS = ("prompt", "prompt_ask_vault_pass")


def read(path: str) -> dict[str, Any] | None:
    """The inventory in the form of `ansible-inventory --list`; `None` where there is no ansible-core.

    Raises:
        InvalidField: Ansible does not understand it.
    """
    try:
        constants = importlib.import_module("ansible.constants")
        errors = importlib.import_module("ansible.errors")
        plugins = importlib.import_module("ansible.plugins.loader")
        dataloader = importlib.import_module("ansible.parsing.dataloader")
        manager = importlib.import_module("ansible.inventory.manager")
        variables = importlib.import_module("ansible.vars.manager")
        others = importlib.import_module("ansible.vars.hostvars")
        template = importlib.import_module("ansible.template")
    except ImportError:
        return None
    try:
        plugins.init_plugin_loader()
        loader = dataloader.DataLoader()
        _give_secrets(loader, constants)
        inventory = manager.InventoryManager(loader=loader, sources=[path])
        known = variables.VariableManager(loader=loader, inventory=inventory)
        # What variables of other hosts are taken from, in templates.
        others.HostVars(inventory=inventory, variable_manager=known, loader=loader)
        hostvars = {}
        for host in inventory.hosts.values():
            every = known.get_vars(host=host, include_hostvars=True)
            templar = template.Templar(loader=loader, variables=every)
            fill = partial(_filled, templar, errors.AnsibleError)
            hostvars[host.name] = {name: fill(every[name]) for name in VARIABLES if name in every}
    except (errors.AnsibleError, SystemExit) as error:
        raise InvalidField("--inventory", f"{path:.300} is not understood: {error!s:.500}") from None
    groups = {name: _group(group) for name, group in inventory.groups.items()}
    return {"_meta": {"hostvars": hostvars}, **groups}


def _give_secrets(loader: Any, constants: Any) -> None:
    """Have the loader know the vault passwords of Ansible's configuration; nobody is asked for one.

    Raises:
        AnsibleError: there is none to be had.
        SystemExit: Ansible's commands do not work here: under a locale without UTF-8, say.
    """
    identities = [each for each in constants.DEFAULT_VAULT_IDENTITY_LIST if each.split("@", 1)[-1] not in _PROMPTS]
    if identities or constants.DEFAULT_VAULT_PASSWORD_FILE:
        # Not imported without need: that changes this process's locale, and may end it.
        commands = importlib.import_module("ansible.cli").CLI
        loader.set_vault_secrets(commands.setup_vault_secrets(loader, vault_ids=identities, auto_prompt=False))


def _group(group: Any) -> dict[str, Any]:
    hosts, children = ([str(each.name) for each in found] for found in (group.hosts, group.child_groups))
    return {"hosts": hosts, "children": children}


def _filled(templar: Any, failure: type[Exception], value: Any) -> Any:
    """The value of a template; the template itself where it has none, which is refused if its host is chosen."""
    try:
        return _plain(templar.template(value))
    except failure:
        return _plain(value)


def _plain(value: Any) -> Any:
    """The text alone: Ansible's own kinds of it carry where they come from."""
    return str(value) if isinstance(value, str) else value
