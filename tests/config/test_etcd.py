"""`cluster.etcd`: every mistake with what to do about it."""

import json
from pathlib import Path
from typing import Any

import pytest

from pylb.config import ConfigErrors, load, parse
from pylb.config.etcd import read_password

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


def test_a_password_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("with blanks, and ü\r\n")
    assert read_password(path) == "with blanks, and ü"
    path.write_text("two\nlines")
    with pytest.raises(ValueError, match="more than one line"):
        read_password(path)
