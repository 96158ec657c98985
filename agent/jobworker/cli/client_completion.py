"""`worker-client completion`: scripts that have a shell ask this program what can follow.

click does the work. For bash the script is another one, whose words are not those of bash: that ends a word at
`=` and `:`, which would take `--addr HOST:PORT` apart.
"""

from __future__ import annotations

import os

import click
from click.shell_completion import BashComplete, add_completion_class, get_completion_class, split_arg_string

from jobworker.cli.client_command import ClientCommand
from jobworker.cli.worker_client import COMPLETE

_BASH = f"""\
_worker_client_completion() {{
    local line=${{COMP_LINE:0:COMP_POINT}} kind value
    local word=${{line##*[[:space:]]}}
    # Readline takes what is behind the last = or : for the word, and puts the offer in its place.
    local settled=${{word%"${{word##*[=:]}}"}}
    while IFS=, read -r kind value; do
        case $kind in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain)
                COMPREPLY+=("${{value#"$settled"}}")
                [[ $value == *= ]] && compopt -o nospace ;;
        esac
    done < <(COMP_WORDS=$line {COMPLETE}=bash_complete "$1" 2>/dev/null)
}}
complete -o nosort -F _worker_client_completion worker-client
"""


class _Bash(BashComplete):
    def source(self) -> str:
        return _BASH

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ["COMP_WORDS"]
        words = split_arg_string(line)
        incomplete = "" if line[-1:].isspace() else words.pop()
        return words[1:], incomplete


add_completion_class(_Bash)

_HELP = """Print a script that has your shell complete what you type behind worker-client.

That is commands, options, states, sandboxes, signals, contexts, and ids and labels of jobs. The latter are asked
of the agent that the line names, or your environment or context; if it does not answer within two seconds, none
are offered.

\b
source <(worker-client completion bash)       # in ~/.bashrc
source <(worker-client completion zsh)        # in ~/.zshrc, behind compinit
worker-client completion fish > ~/.config/fish/completions/worker-client.fish
"""


@click.command("completion", cls=ClientCommand, help=_HELP)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    make = get_completion_class(shell)
    if make is None:
        raise click.UsageError(f"this version of click knows no {shell}")
    click.echo(make(ctx.find_root().command, {}, "worker-client", COMPLETE).source(), nl=False)
