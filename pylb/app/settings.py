"""The settings in force: config, tokens, certificates. reload.py replaces them while pylb runs."""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

from pylb.app.errors import CannotStart
from pylb.app.tokens import TLS_FOLDER, TokenStore, names_of_machine
from pylb.config import Config
from pylb.config.models import WebhookListener
from pylb.core.auth import Keyring, Token
from pylb.web.tls import Certificate, repaired

log = logging.getLogger("pylb")


class Settings:
    """`complaint`: why `config` is the last good one instead of the file's."""

    def __init__(self, config: Config, complaint: str) -> None:
        self.config = config
        self.complaint = complaint
        self.reloaded = not complaint  # did the last reading of the config succeed?
        self.keyring = Keyring(())
        self.certificates: list[Certificate] = []
        self._keys: TokenStore | None = None

    @property
    def keys(self) -> TokenStore:
        """Available from the first `use` on."""
        if self._keys is None:
            raise RuntimeError("no tokens yet")
        return self._keys

    def use(self, config: Config, keys: TokenStore, keyring: Keyring) -> None:
        """Put a config and its tokens in force. `keyring`: the tokens of `keys`."""
        self.config, self._keys, self.keyring = config, keys, keyring

    def token(self, name: str) -> Token | None:
        return next((token for token in self.keyring.tokens if token.name == name), None)

    def key_files(self) -> Iterator[Path]:
        """Key files of the config in force: a change is a reason to read them again."""
        yield from self.keys.files()

    # ------------------------------------------------------------ certificates

    async def load_certificate(self, listener: WebhookListener) -> Certificate | None:
        """The listener's certificate, in force from now on; None for plain HTTP. Raises CannotStart."""
        found = await asyncio.to_thread(_certificate, self.config, listener)
        if found is not None:
            self.certificates.append(found)
        return found

    def certificate_files(self) -> Iterator[Path]:
        for certificate in self.certificates:
            yield certificate.path
            yield certificate.key

    async def read_certificates(self) -> None:
        """Read the certificates again. New handshakes use renewed ones; a broken one is reported and changes nothing."""
        for certificate in self.certificates:
            try:
                await asyncio.to_thread(certificate.reload)
            except (OSError, ValueError) as error:
                log.error("%s: the new certificate cannot be used, the old one stays in use: %s", certificate.path, error)

    def certificate_expires_at(self) -> float | None:
        """When the first of the certificates expires."""
        return min((one.expires_at for one in self.certificates), default=None)


def make_state_dir(config: Config) -> None:
    """Make the state directory. If that fails, pylb serves what it knows and refuses new names and ports."""
    try:
        config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        text = "the state directory %s cannot be made (%s): new names and ports will be refused"
        log.error(text, config.state_dir, error.strerror)


def make_keys(config: Config) -> TokenStore:
    """The tokens of this config. Reads files, so call it in a thread. Raises CannotStart."""
    try:
        return TokenStore(config)
    except OSError as error:
        raise CannotStart(
            f"no token is configured and none can be kept in {config.state_dir}: {error.strerror}. "
            "Make the directory writable, set state_dir, or configure tokens."
        ) from None


def _certificate(config: Config, listener: WebhookListener) -> Certificate | None:
    """Reads files, so call it in a thread. Raises CannotStart."""
    tls = listener.tls
    if tls is None:
        return None
    try:
        if tls.self_signed:
            certificate, complaint = repaired(config.state_dir / TLS_FOLDER, names_of_machine(config))
            if complaint:
                log.error("%s", complaint)
            return certificate
        if tls.certificate is not None and tls.key is not None:
            return Certificate(tls.certificate, tls.key)
    except (OSError, ValueError) as error:
        raise CannotStart(f"the webhook's certificate cannot be used: {error}") from None
    return None
