"""`pylb completion`, and what a shell shows for an operand: ports, names and ids of the running pylb.

click completes verbs and options. What an operand may be is asked of the running pylb on each Tab, in one short question: no
config is parsed, and where pylb is away, busy or not ours to ask, nothing is shown.
"""

import os
from collections.abc import Callable
from pathlib import Path

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
    split_arg_string,
)

from pylb.cli.client import say
from pylb.control.storage.places import chosen, likely_state_dir
from pylb.web.control_client import call

PATIENCE = 0.25  # seconds for pylb to answer
VARIABLE = "_PYLB_COMPLETE"
Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def words(*kinds: str) -> Complete:
    """Completes with words of these kinds (api/completion.py) of the running pylb."""

    def complete(context: click.Context, _operand: click.Parameter, incomplete: str) -> list[CompletionItem]:
        asked = [kind for kind in kinds if kind != "session" or len(kinds) == 1 or incomplete.startswith("0")]
        directory = likely_state_dir(_config(context), os.environ)
        try:
            answer = call(directory / "control.sock", {"verb": "complete", "kinds": asked, "prefix": incomplete}, PATIENCE)
            return [CompletionItem(word, help=what) for word, what in answer["words"]]
        except (OSError, ValueError, KeyError, TypeError):  # an older pylb has no such verb
            return []

    return complete


def _config(context: click.Context) -> Path | None:
    """-c of this verb or of a group before it, as in `pylb token -c FILE rotate`."""
    at: click.Context | None = context
    while at is not None:
        if (given := at.params.get("config_path")) is not None:
            return Path(given)
        at = at.parent
    return chosen(None, os.environ)


class _Bash(BashComplete):
    """Completes words with a colon, too. bash cuts them in pieces, so it gets back what is behind the last colon."""

    source_template = """\
%(complete_func)s() {
    local IFS=$'\\n' word line="${COMP_LINE:0:COMP_POINT}"
    COMPREPLY=()
    for word in $(COMP_LINE="$line" COMP_BREAKS="$COMP_WORDBREAKS" %(complete_var)s=bash_complete "$1" 2>/dev/null); do
        case $word in
            dir,*) compopt -o dirnames ;;
            file,*) compopt -o default ;;
            plain,*) COMPREPLY+=("${word#plain,}") ;;
        esac
    done
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""

    @staticmethod
    def _check_version() -> None:
        """Whoever writes the script need not be the bash that will read it."""

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ["COMP_LINE"]
        args = split_arg_string(line)
        incomplete = "" if line[-1:].isspace() or not args else args.pop()
        return args[1:], incomplete

    def format_completion(self, item: CompletionItem) -> str:
        _args, incomplete = self.get_completion_args()
        cut = incomplete.rfind(":") + 1 if ":" in os.environ.get("COMP_BREAKS", "") else 0
        return f"{item.type},{item.value[cut:]}"


add_completion_class(_Bash)
SHELLS: dict[str, type[ShellComplete]] = {"bash": _Bash, "zsh": ZshComplete, "fish": FishComplete}


@click.command()
@click.argument("shell", type=click.Choice(list(SHELLS)))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what teaches a shell to complete verbs, options, and the ports, names and ids of the running pylb.

    \b
    bash   pylb completion bash > /etc/bash_completion.d/pylb
           or in ~/.bashrc:  eval "$(pylb completion bash)"
    zsh    pylb completion zsh > /usr/local/share/zsh/site-functions/_pylb
           or in ~/.zshrc, below compinit:  eval "$(pylb completion zsh)"
    fish   pylb completion fish > ~/.config/fish/completions/pylb.fish

    On Tab the running pylb is asked, as by any verb: as root, or as the user that pylb runs as.
    """
    say(SHELLS[shell](context.find_root().command, {}, "pylb", VARIABLE).source(), nl=False)
