"""`pylb token`: who may register. Made tokens are files in the state directory; a running pylb reads them at once."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pylb.cli.client import AS_OWNER, CONFIG, FAILED, JSON, ask, die, loaded, running, say, state_dir
from pylb.cli.completion import words
from pylb.cli.joins import controller_manifests, for_controller, join_string, manifests_of
from pylb.cli.program import Verbs
from pylb.cli.tables import Column, Table
from pylb.core.text import ago

if TYPE_CHECKING:
    from pylb.config import Config
    from pylb.config.generated_tokens import GeneratedToken


@click.group(
    cls=Verbs,
    invoke_without_command=True,
    instead={
        "add": "pylb token create",
        "delete": "pylb token revoke",
        "new": "pylb token create",
        "remove": "pylb token revoke",
        "renew": "pylb token rotate",
    },
)
@CONFIG
@click.option("--show", is_flag=True, help="Print the token that the first run made instead of a new one.")
@click.pass_context
def token(context: click.Context, config_path: Path | None, show: bool) -> None:
    """Who may register. Alone: print a new secret, ready for a secret_file (32 characters, 192 bits).

    \b
    pylb token create mosquitto --ports 8443
               a token for one app, and the join string that its phone-home needs
    pylb token create mosquitto --ports 8443 --kubernetes | kubectl apply -f -
    pylb token create kubernetes --kubernetes-controller --targets CIDR
               for all Services of type LoadBalancer; CIDR: your nodes
    pylb token list
    pylb token rotate mosquitto
               a second secret beside the old one; roll it out, then
    pylb token rotate mosquitto --done
               the old one is refused
    pylb token revoke mosquitto
    pylb token switch-key
               the webhook serves the next key, which join strings pin already
    """
    if context.invoked_subcommand is not None:
        if config_path is not None:  # `pylb token -c FILE create …` means that file too
            context.default_map = {context.invoked_subcommand: {"config_path": config_path}}
        return
    if not show:
        say(_new_secret())
        return
    from pylb.app.tokens import TOKEN_FILE  # noqa: PLC0415

    path = state_dir(config_path) / TOKEN_FILE
    try:
        say(path.read_text().strip())
    except OSError as error:
        made = "it is made by the first `pylb run` without configured tokens"
        die(f"{path}: {error.strerror}", hint=AS_OWNER if isinstance(error, PermissionError) else made)
    except UnicodeDecodeError:
        die(f"{path} is not text. Move it away: the next start of pylb makes another one.")


def _split(_context: click.Context, _option: click.Parameter, value: str | None) -> list[str] | None:
    return None if value is None else [item for item in value.replace(",", " ").split() if item]


@token.command()
@CONFIG
@click.argument("name")
@click.option("--ports", metavar="PORTS", callback=_split, help="Frontend ports it may open: 443,8883-8899. Needed.")
@click.option("--names", metavar="NAME[,…]", callback=_split, help="Names it may register; default: its own; * for any.")
@click.option(
    "--server-names",
    metavar="NAME[,…]",
    callback=_split,
    help="Server names (TLS) it may route: git.example.net, *.example.net, * for any; default: none.",
)
@click.option("--sources", metavar="CIDR[,…]", callback=_split, help="Networks it may be used from; default: anywhere.")
@click.option(
    "--targets", metavar="CIDR[,…]", callback=_split, help="Addresses it may name; default: only the one it calls from."
)
@click.option("--target-ports", metavar="PORTS", callback=_split, help="Server ports it may name; default: 30000-32767.")
@click.option(
    "--from",
    "replaces",
    metavar="OTHER",
    shell_complete=words("token"),
    help="What token OTHER registered of these is its own from now on.",
)
@click.option("--takeover", is_flag=True, help="It may take ports that another token or name owns.")
@click.option("--legacy", is_flag=True, help="It may be used on the legacy route, too.")
@click.option("--host", metavar="HOST", help="What the join string calls this machine; default: advertise.")
@click.option("--kubernetes", is_flag=True, help="Print Secret, ConfigMap, phone-home and Service instead, for kubectl.")
@click.option(
    "--frontends", metavar="PORT:NODEPORT[,…]", callback=_split, help='With --kubernetes: "443:30443", as in PYLB_FRONTENDS.'
)
@click.option("--app", metavar="LABEL", help="With --kubernetes: the label `app` of your pods; default: NAME.")
@click.option(
    "--kubernetes-controller",
    "controller",
    is_flag=True,
    help="Print the controller for Services of type LoadBalancer instead, for kubectl. Then --targets is needed; --ports (any "
    "but TCP 22), --names (any) and --target-ports (30000-32767 and 10256, kube-proxy's health) have other defaults.",
)
@click.option(
    "--public-address",
    metavar="ADDRESS[,…]",
    callback=_split,
    help="With --kubernetes-controller: what a Service shows; default: public_addresses, else the host of the join string.",
)
@click.option(
    "--namespace", metavar="NAME", help="With --kubernetes (default: default) and --kubernetes-controller (pylb-system)."
)
@JSON
def create(config_path: Path | None, name: str, **options: Any) -> None:
    """Make a token, and print the join string for PYLB_JOIN of its phone-home.

    The join string holds the address, the public key of the webhook's certificate and the secret: treat it as a password.

    With --from OTHER (`generated` is the first run's token) apps get tokens of their own without a gap: registrations of
    OTHER whose names and ports are this token's too become its own at once, their ports go on serving, and calls with either
    secret keep them fresh. Roll the new join string out, look at `pylb token list`, then `pylb token revoke OTHER`.
    """
    from pylb.app import tokens  # noqa: F401, PLC0415 - all that is needed, before root acts as somebody who may not read it
    from pylb.config.generated_tokens import read_generated, write_generated  # noqa: PLC0415
    from pylb.host.machine import as_owner  # noqa: PLC0415

    config = loaded(config_path)
    if options["controller"]:
        options = {**options, **for_controller(options)}
    elif not options["ports"]:
        raise click.UsageError("Missing option '--ports'.")
    if name in {entry.name for entry in config.tokens}:
        die(f"a token called {name!r} is in the config", FAILED)
    other = options["replaces"]
    if other is not None:
        _known(config, other)
    if name in read_generated(config.state_dir).tokens:
        die(f"there is a token called {name!r} already (pylb token rotate {name}, or revoke)", FAILED)
    made = _made(name, options)
    try:
        config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with as_owner(config.state_dir):
            join = join_string(config, options["host"], made)
        manifests = ""
        if options["controller"]:
            manifests = controller_manifests(join, config.public_addresses, options)
        elif options["kubernetes"]:
            manifests = manifests_of(made, join, options)
        with as_owner(config.state_dir):
            write_generated(config.state_dir, made)
    except OSError as error:
        die(f"{config.state_dir}: {error.strerror}. Run it as root or as pylb's own user.")
    in_force = _tell(config_path, config.state_dir)
    if options["as_json"]:
        say(json.dumps({"name": name, "join": join, "in_force": in_force}))
    elif manifests:
        say(manifests, nl=False)
    else:
        say(f"PYLB_JOIN={join}")


@token.command("list")
@CONFIG
@JSON
def list_(config_path: Path | None, as_json: bool) -> None:
    """All tokens with their scopes: of the config, made ones, and the first run's."""
    from pylb.app.tokens import first_run_in_force  # noqa: PLC0415
    from pylb.config.generated_tokens import read_generated  # noqa: PLC0415

    config = loaded(config_path)
    found = read_generated(config.state_dir)
    if not found.listed:
        die("; ".join(found.complaints), hint=AS_OWNER)
    configured = {entry.name for entry in config.tokens}
    uses = _uses(config.state_dir)
    rows = [_row(entry, "config", config.secrets_of(entry.name), uses) for entry in config.tokens]
    rows += [_row(made, "made", made.secrets, uses) for name, made in found.tokens.items() if name not in configured]
    if first_run_in_force(config, found):
        rows.append({"name": "generated", "from": "first run", "ports": "any", "names": "*", "sources": "any", "secrets": 1,
                     "last_used": [max(uses.get("generated", {}).values(), default=None)]})  # fmt: skip
    for text in found.complaints:
        say(text, err=True)
    if as_json:
        say(json.dumps(rows, indent=2))
        return
    say(_table(rows, running(config.state_dir)))
    if rows and rows[-1]["from"] == "first run":
        hint = "pylb token revoke generated, once your apps have tokens of their own"
        say(f"`generated` may open any port: {hint}", err=True)


@token.command()
@CONFIG
@click.argument("name", shell_complete=words("token"))
@click.option("--done", is_flag=True, help="End a rotation: only the newest secret counts from now on.")
@click.option("--host", metavar="HOST", help="What the join string calls this machine; default: advertise.")
@JSON
def rotate(config_path: Path | None, name: str, done: bool, host: str | None, as_json: bool) -> None:
    """A new secret beside the old one, which goes on counting until `--done`. Prints the new join string.

    A token of the config is rotated in its secret_file: one secret a line, read again when the file changes.
    """
    from pylb.app import tokens  # noqa: F401, PLC0415 - as in create
    from pylb.config.generated_tokens import write_generated  # noqa: PLC0415
    from pylb.host.machine import as_owner  # noqa: PLC0415

    config, made = _find(config_path, name)
    if done and len(made.secrets) == 1:
        die(f"token {name!r} has one secret: nothing is being rotated", FAILED)
    used = _used(made.secrets, _uses(config.state_dir).get(name, {}))
    if not done and len(made.secrets) > 1:
        die(f"token {name!r} is being rotated: its old secret would be refused at once ({_last(used[-1])}). "
            f"When nobody calls with it any more: pylb token rotate {name} --done", FAILED)  # fmt: skip
    kept = made.secrets[:1] if done else (_new_secret(), *made.secrets)
    changed = made.model_copy(update={"secrets": kept})
    try:
        with as_owner(config.state_dir):
            join = join_string(config, host, changed)
            write_generated(config.state_dir, changed)
    except OSError as error:
        die(f"{config.state_dir}: {error.strerror}. Run it as root or as pylb's own user.")
    in_force = _tell(config_path, config.state_dir)
    if as_json:
        say(json.dumps({"name": name, "join": join, "secrets": len(kept), "in_force": in_force}))
    elif done:
        say(f"token {name!r}: the old secret is refused from now on ({_last(used[-1])})")
    else:
        say(f"PYLB_JOIN={join}")


@token.command()
@CONFIG
@click.argument("name", shell_complete=words("token"))
@JSON
def revoke(config_path: Path | None, name: str, as_json: bool) -> None:
    """Refuse a token from now on. What it registered becomes stale, and is served as the last resort for leases.keep_stale.

    `pylb release NAME` gives its ports up at once. `generated` is the token of the first run.
    """
    from pylb.app.tokens import TOKEN_FILE, first_run_in_force  # noqa: PLC0415
    from pylb.config.generated_tokens import read_generated, remove_generated  # noqa: PLC0415
    from pylb.host.machine import as_owner  # noqa: PLC0415

    config = loaded(config_path)
    found = read_generated(config.state_dir)
    if name == "generated" and first_run_in_force(config, found):
        if not found.tokens:
            die("there is no other token: pylb would make a new one. `pylb token create` comes first.", FAILED)
        path = config.state_dir / TOKEN_FILE
        try:
            with as_owner(config.state_dir):
                path.unlink()
        except OSError as error:
            die(f"{path}: {error.strerror}. Run it as root or as pylb's own user.")
    else:
        _find(config_path, name)
        try:
            with as_owner(config.state_dir):
                remove_generated(config.state_dir, name)
        except OSError as error:
            die(f"{config.state_dir}: {error.strerror}. Run it as root or as pylb's own user.")
    in_force = _tell(config_path, config.state_dir)
    text = f"token {name!r} is refused from now on; `pylb release NAME` frees what it registered"
    say(json.dumps({"name": name, "in_force": in_force}) if as_json else text)


@token.command("switch-key")
@CONFIG
@JSON
def switch_key(config_path: Path | None, as_json: bool) -> None:
    """Give the webhook's own certificate (tls: self-signed) the next key, whose pin join strings hold beside the present one.

    Nobody notices who has a join string with both pins. Afterwards `pylb token rotate` makes join strings that pin the new
    key and the one after it: roll them out before the next switch. Clients that were given the old certificate (PYLB_CA)
    need the new one.
    """
    from pylb.app.tokens import TLS_FOLDER, names_of_machine  # noqa: PLC0415
    from pylb.host.machine import as_owner  # noqa: PLC0415
    from pylb.web.tls import switch  # noqa: PLC0415

    config = loaded(config_path)
    if not any(listener.tls is not None and listener.tls.self_signed for listener in config.webhook):
        die("no webhook listener has tls: self-signed; the key of another certificate is its owner's to change", FAILED)
    folder = config.state_dir / TLS_FOLDER
    try:
        with as_owner(config.state_dir):
            key = switch(folder, names_of_machine(config))
    except FileNotFoundError:
        die("no join string pins a next key yet: make new ones (pylb token rotate), roll them out, then switch", FAILED)
    except (OSError, ValueError) as error:
        die(f"the key cannot be switched: {error}. Run it as root or as pylb's own user.")
    text = f"the webhook has the key {key} from now on; a running pylb notices within seconds"
    say(json.dumps({"key": key}) if as_json else text)


def _new_secret() -> str:
    import secrets  # noqa: PLC0415 - and with it OpenSSL

    return secrets.token_urlsafe(24)


def _known(config: "Config", name: str) -> None:
    """Ends the program where there is no such token."""
    from pylb.app.tokens import first_run_in_force  # noqa: PLC0415
    from pylb.config.generated_tokens import read_generated  # noqa: PLC0415

    found = read_generated(config.state_dir)
    names = {entry.name for entry in config.tokens} | found.tokens.keys()
    if name not in names | ({"generated"} if first_run_in_force(config, found) else set()):
        die(f"there is no token called {name!r} (pylb token list)", FAILED)


def _uses(directory: Path) -> dict[str, dict[str, float]]:
    """When the secrets of each token were last called with, as far as a running pylb knows."""
    from pylb.web.control_client import call  # noqa: PLC0415

    try:
        found = call(directory / "control.sock", {"verb": "token uses"}, timeout=5.0).get("uses", {})
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _used(secrets_: Sequence[str], uses: dict[str, float]) -> list[float | None]:
    """The unix time of each secret's last call; None: none since pylb started, or pylb is not running."""
    from pylb.core.auth import fingerprint  # noqa: PLC0415

    return [uses.get(fingerprint(secret)) for secret in secrets_]


def _last(at: float | None) -> str:
    return "not used since pylb started, as far as is known" if at is None else f"used {ago(time.time() - at)}"


def _table(rows: Sequence[Mapping[str, Any]], running_here: bool) -> Table:
    """A row for each token. Only a running pylb knows when a secret was last used."""
    keys = ("name", "from", "ports", "names", "sources")
    columns = [Column(key.upper(), folds=True) for key in keys]
    columns += [Column("SECRETS"), *([Column("LAST USED", folds=True)] if running_here else [])]
    found = []
    for row in rows:
        cells = [*(row[key] for key in keys), f"{row['secrets']}{', being rotated' if row['secrets'] > 1 else ''}"]
        if running_here:
            new, *old = map(_last, row["last_used"])
            cells.append("; ".join([f"the new secret: {new}", *(f"the old secret: {one}" for one in old)]) if old else new)
        found.append(cells)
    return Table(columns, found)


def _find(config_path: Path | None, name: str) -> "tuple[Config, GeneratedToken]":
    from pylb.config.generated_tokens import read_generated  # noqa: PLC0415

    config: Config = loaded(config_path)
    made = read_generated(config.state_dir).tokens.get(name)
    if made is None:
        entry = next((entry for entry in config.tokens if entry.name == name), None)
        if entry is not None:
            where = f"its secret_file is {entry.secret_file}" if entry.secret_file else "its secret stands there"
            die(f"token {name!r} is of the config ({where}): change it there", FAILED)
        die(f"there is no token called {name!r} (pylb token list)", FAILED)
    return config, made


def _made(name: str, options: dict[str, Any]) -> "GeneratedToken":
    from pydantic import ValidationError  # noqa: PLC0415

    from pylb.config.generated_tokens import GeneratedToken, now  # noqa: PLC0415

    keys = ("ports", "names", "server_names", "sources", "targets", "target_ports")
    given = {key: options[key] for key in keys if options[key]}
    given |= {key: True for key in ("takeover",) if options[key]}
    given |= {"replaces": [options["replaces"]]} if options["replaces"] else {}
    try:
        return GeneratedToken.model_validate(
            {"name": name, "secrets": [_new_secret()], "legacy": options["legacy"], "created": now(), **given}
        )
    except ValidationError as error:
        problems = error.errors(include_input=False, include_url=False)
        texts = (f"{problem['loc'][0] if problem['loc'] else 'token'}: {_said(problem)}" for problem in problems)
        die("\n".join(texts))


def _said(problem: Any) -> str:
    context = problem.get("ctx", {})
    hint = f" ({context['hint']})" if context.get("hint") else ""
    return f"{problem['msg']}{hint}"


def _row(entry: Any, origin: str, secrets_: Sequence[str], uses: dict[str, dict[str, float]]) -> dict[str, Any]:
    return {
        "name": entry.name,
        "from": origin,
        "ports": ",".join(map(str, entry.ports)),
        "names": ",".join(entry.names or (entry.name,)),
        "sources": "any" if "sources" not in entry.model_fields_set else ",".join(map(str, entry.sources)),
        "secrets": len(secrets_),
        "last_used": _used(secrets_, uses.get(entry.name, {})),
    }


def _tell(config_path: Path | None, directory: Path) -> bool:
    """A running pylb reads the tokens at once."""
    if not running(directory):
        say("pylb is not running here (or not with this config): it counts from its next start", err=True)
        return False
    ask(config_path, {"verb": "tokens"})
    return True
