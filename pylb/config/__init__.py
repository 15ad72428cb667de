"""pylb.yaml: parsed once, at the edge, into frozen values; every mistake is reported with its line and a remedy.

No other folder sees YAML, the environment or a raw duration.

source      the file, or what was in force before; load: from a file to a `Config`, or to all its mistakes
yamlplace   YAML with the place of each value
models      the keys: names, types, defaults, meanings; frontends: theirs; cluster: those of `cluster`;
             section: what all mappings have in common
values      the types of single values; addresses: of addresses, ports and host names; value_type: what all of them share
schema      the keys as JSON Schema
entries     the readable parts of a file with mistakes
checks      mistakes that no single value shows; health: of health checks; etcd: of cluster.etcd;
            without_effect: settings without effect
files       secrets, certificates and keys that it names; pem: why one of the latter cannot be used;
            generated_tokens: those that `pylb token create` makes
problems    what is wrong, and where; explain: pydantic's findings in words; hiding: no secret in a message
root        the whole file as one value, and the parts that other folders take from it
"""

from pylb.config.load import load, parse, read_secrets_again, read_text
from pylb.config.problems import ConfigErrors, Position, Problem
from pylb.config.root import Config, first_run_token
from pylb.config.schema import schema
from pylb.control.storage.places import default_state_dir

__all__ = [
    "Config",
    "ConfigErrors",
    "Position",
    "Problem",
    "default_state_dir",
    "first_run_token",
    "load",
    "parse",
    "read_secrets_again",
    "read_text",
    "schema",
]
