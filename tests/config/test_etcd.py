"""`cluster.etcd`: every mistake with what to do about it."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat, load_pem_private_key

from pylb.config import ConfigErrors, load, parse
from pylb.config.etcd import read_password
from tests.support.certificate import self_signed

HTTPS = "https://10.0.0.5:2379"


def text(etcd: Any) -> str:
    return json.dumps({"cluster": {"etcd": etcd}})


def refused(etcd: Any) -> str:
    with pytest.raises(ConfigErrors) as caught:
        parse(text(etcd), "pylb.yaml")
    return str(caught.value)


def test_without_it_there_is_no_cluster() -> None:
    assert parse("", "pylb.yaml").cluster.etcd is None


def test_the_defaults() -> None:
    found = parse(text({"endpoints": [f"{HTTPS}/"]}), "pylb.yaml").cluster.etcd
    assert found is not None
    assert (found.endpoints, found.prefix, found.timeout) == ((HTTPS,), "/pylb/v1", 3.0)


@pytest.mark.parametrize(
    ("etcd", "said"),
    [
        ({}, "endpoints"),
        ({"endpoints": []}, "etcd has no endpoints"),
        ({"endpoints": ["10.0.0.5:2379"]}, "'10.0.0.5:2379' is not a URL (as in https://10.0.0.5:2379"),
        ({"endpoints": ["https://root:secret@10.0.0.5"]}, "a URL with a user or password"),
        ({"endpoints": [HTTPS, HTTPS]}, "is there twice"),
        ({"endpoints": [HTTPS], "prefix": "pylb"}, "'pylb' is not a prefix of keys"),
        ({"endpoints": [HTTPS], "prefix": "/pylb/"}, "words with slashes in front"),
        ({"endpoints": [HTTPS], "certificate": "/a.pem"}, "certificate without key has no effect"),
        ({"endpoints": [HTTPS], "key": "/a.key"}, "key without certificate has no effect"),
        ({"endpoints": [HTTPS], "username": "pylb"}, "username without password_file has no effect"),
        ({"endpoints": [HTTPS], "password_file": "/p"}, "password_file without username has no effect"),
        ({"endpoints": ["http://127.0.0.1:2379"], "ca": "/ca.pem"}, "ca has no effect: no endpoint is https://"),
        ({"endpoints": [HTTPS], "insecure": True}, "insecure has no effect"),
        ({"endpoints": ["http://127.0.0.1:2379"], "insecure": True}, "insecure has no effect"),
        ({"endpoints": [HTTPS], "endpoint": HTTPS}, "did you mean"),
    ],
)
def test_a_mistake_is_named(etcd: Any, said: str) -> None:
    assert said in refused(etcd)


def test_plain_http_to_another_machine_has_to_be_wanted() -> None:
    assert "whoever is on the path can open any port" in refused({"endpoints": ["http://10.0.0.5:2379"]})
    wanted = parse(text({"endpoints": ["http://10.0.0.5:2379"], "insecure": True}), "pylb.yaml")
    assert any("whoever is on the path can open any port" in one for one in wanted.warnings)
    for url in ("http://127.0.0.1:2379", "http://[::1]:2379", "http://localhost:2379"):
        assert parse(text({"endpoints": [url]}), "pylb.yaml").warnings == ()


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    path = tmp_path / "pylb.yaml"
    names = {"ca": "ca.pem", "certificate": "c.pem", "key": "c.key", "password_file": "password"}
    files = {"username": "pylb", **{key: str(tmp_path / name) for key, name in names.items()}}
    path.write_text(text({"endpoints": [HTTPS], **files}))
    with pytest.raises(ConfigErrors) as caught:
        load(path, {})
    for name in ("ca.pem", "c.pem", "c.key", "password"):
        assert f"{tmp_path / name} cannot be read: No such file or directory" in str(caught.value)
    (tmp_path / "password").write_text("\n")
    with pytest.raises(ConfigErrors, match="password is empty, or more than one line"):
        load(path, {})


def loaded(folder: Path, **files: Path | str) -> tuple[list[str], list[str]]:
    """The mistakes, and the warnings if there are none."""
    path = folder / "pylb.yaml"
    path.write_text(text({"endpoints": [HTTPS], **{key: str(value) for key, value in files.items()}}))
    try:
        return [], list(load(path, {}).warnings)
    except ConfigErrors as errors:
        return [str(one) for one in errors.problems], []


def test_what_is_wrong_with_a_file_is_said_with_what_to_do(tmp_path: Path) -> None:
    good = self_signed(tmp_path, "lb-a")
    (tmp_path / "other").mkdir()
    other = self_signed(tmp_path / "other", "lb-b")
    good.key.chmod(0o600)
    pair = {"certificate": good.certificate, "key": good.key}
    assert loaded(tmp_path, ca=good.certificate, **pair) == ([], [])

    def made(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    key = load_pem_private_key(good.key.read_bytes(), None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    der = x509.load_pem_x509_certificate(good.certificate.read_bytes()).public_bytes(Encoding.DER)
    damaged = good.certificate.read_bytes().replace(b"MI", b"--", 1)
    for files, said in (
        (
            {"ca": made("empty", b"")},
            "empty has no certificate that can be read (it is empty; a file in PEM form has a line -----BE",
        ),
        (
            {"ca": good.key},
            "key.pem has no certificate that can be read (a file in PEM form, with a line -----BEGIN CERTIFICATE",
        ),
        ({"ca": made("damaged", damaged)}, "damaged has no certificate that can be read (what follows its line"),
        (
            {"ca": made("der", der)},
            f"der is in DER form, not in PEM form (openssl x509 -inform der -in {tmp_path}/der -out FILE)",
        ),
        ({"ca": tmp_path}, f"{tmp_path} is not a regular file (a file in PEM form)"),
        ({**pair, "key": good.certificate}, "cert.pem has no private key that can be read"),
        (
            {**pair, "key": made("locked", locked)},
            f"is encrypted, and nobody is there to type the passphrase (openssl pkey -in {tmp_path}/l",
        ),
        ({**pair, "key": other.key}, f"{other.key} does not belong to {good.certificate} (the key for which"),
    ):
        (mistake,), _ = loaded(tmp_path, **files)
        assert said in mistake
        assert mistake.startswith(f"{tmp_path}/pylb.yaml:1:")


def test_what_works_and_may_not_for_long_is_a_warning(tmp_path: Path) -> None:
    late = self_signed(tmp_path, "lb-a", lasts=timedelta(minutes=-1))
    late.key.chmod(0o644)
    password = tmp_path / "password"
    password.write_text("secret\n")
    password.chmod(0o644)
    files = {"ca": late.certificate, "certificate": late.certificate, "key": late.key}
    mistakes, warnings = loaded(tmp_path, **files, username="pylb", password_file=password)
    assert mistakes == []
    for said in (
        f"{late.certificate} has expired on ",
        f"every user of this machine can read {late.key} (chmod o-r",
        f"every user of this machine can read {password} (chmod o-r",
        "has the CommonName 'lb-a': etcd's gateway refuses it if etcd has users",
    ):
        assert any(said in one for one in warnings), warnings


def test_a_password_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("with blanks, and ü\r\n")
    assert read_password(path) == "with blanks, and ü"
    path.write_text("two\nlines")
    with pytest.raises(ValueError, match="more than one line"):
        read_password(path)
