"""The keys of `cluster`: several machines that share an address, or a table."""

import re
from typing import Annotated

from pydantic import BeforeValidator, Field, PlainValidator

from pylb.config import addresses as a
from pylb.config import values as v
from pylb.config.problems import wrong
from pylb.config.section import Section
from pylb.config.value_type import TEXT, JsonType, listed, one_or_more, plain_text, show

_PREFIX = re.compile(r"(/[A-Za-z0-9._-]{1,64}){1,8}")


def _endpoint(value: object) -> str:
    text = plain_text(value, "a URL")
    if "://" not in text:
        raise wrong(f"{show(value)} is not a URL", "as in https://10.0.0.5:2379: etcd's address for clients")
    return a.parse_url(value)


def _key_prefix(value: object) -> str:
    text = plain_text(value, "a prefix of keys")
    if not _PREFIX.fullmatch(text):
        raise wrong(f"{show(value)} is not a prefix of keys", "words with slashes in front, as in /pylb/v1")
    return text


Endpoints = Annotated[
    tuple[Annotated[str, PlainValidator(_endpoint)], ...],
    BeforeValidator(one_or_more),
    JsonType("list of `https://HOST:PORT`", listed(TEXT)),
]
KeyPrefix = Annotated[str, PlainValidator(_key_prefix), JsonType("text such as `/pylb/v1`")]


class Etcd(Section):
    endpoints: Endpoints = Field(description="the members of etcd; the next one is asked when one does not answer")
    prefix: KeyPrefix = Field("/pylb/v1", description="where the keys are: the same on all balancers that share their table")
    ca: v.FilePath | None = Field(None, description="PEM file: the authority of etcd's certificates; unset: the system's")
    certificate: v.FilePath | None = Field(None, description="PEM file: this balancer's certificate for etcd")
    key: v.FilePath | None = Field(None, description="PEM file: its private key")
    username: v.Name | None = Field(None, description="the user, if etcd has users")
    password_file: v.FilePath | None = Field(
        None, description="its password, on one line; all four files are read again when they change"
    )
    insecure: v.Flag = Field(False, description="allow `http://` beyond loopback: who sees the network can open any port then")
    timeout: v.LongerThanZero = Field(3.0, description="how long a call waits for one member; a new name waits for its claim")


class Cluster(Section):
    name: v.Name | None = Field(
        None, description="what the others call this balancer; each has its own; default: the host name"
    )
    addresses: a.Ips = Field(
        (),
        description="the floating addresses, the same on all machines: no registration may send clients there, and "
        "`pylb_address_held` says who has them",
    )
    etcd: Etcd | None = Field(None, description="where balancers share their registrations; unset: they do not")
