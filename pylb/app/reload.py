"""What a reload may change, and what it did, in words."""

import asyncio
import logging

from pylb.config import Config
from pylb.core.errors import Code, Refused
from pylb.core.policy import Rules
from pylb.host.machine import RESOLVE_SECONDS, local_addresses, resolve
from pylb.web.tls import Certificate

log = logging.getLogger("pylb")


async def own_ips_of(config: Config) -> frozenset[str]:
    """The addresses of this machine, and those that others call it by. A name that does not resolve just now adds none."""
    own = await asyncio.to_thread(local_addresses)  # /proc/net/fib_trie is long on a router
    if config.advertise is not None:
        try:
            own |= await resolve(config.advertise)
        except TimeoutError:
            log.warning("advertise: %s did not resolve within %.0f s", config.advertise, RESOLVE_SECONDS)
    return own | config.own_ips


async def rules_of(config: Config) -> Rules:
    """With the addresses of this machine, for the scope of tokens and against loops."""
    own = await own_ips_of(config)
    return await asyncio.to_thread(config.rules, own)  # ten thousand lines of access take a while


def check_fixed(old: Config, new: Config) -> None:
    """What a reload cannot change is refused, not ignored. Raises Refused."""
    fixed = ("webhook", "admin", "metrics", "state_dir", "runtime_socket", "workers", "log", "recorder")
    changed = [key for key in fixed if getattr(old, key) != getattr(new, key)]
    if changed:
        how = "pylb upgrade: the same version with the new config, and no connection is lost"
        if "state_dir" in changed:  # what takes over finds the one before by it
            how = "restart it: the ports come back by themselves"
        raise Refused(Code.INVALID, f"{', '.join(changed)} cannot change while pylb runs", how)


def reload_certificate(certificate: Certificate) -> None:
    """A renewed one serves new handshakes; a broken one changes nothing, loudly. For a thread."""
    try:
        certificate.reload()
    except (OSError, ValueError) as error:
        log.error("%s: the new certificate cannot be used, the old one goes on: %s", certificate.path, error)
