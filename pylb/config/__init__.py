"""pylb.yaml: parsed once, at the edge, into frozen values; every mistake with its line and what to write instead.

`yamlplace` reads the text and keeps the places, `models` and `values` say what may stand where, `checks` and `files` look
across entries and at the disk, `load` puts it together. Below here nobody sees YAML, the environment or a raw duration.
"""

from pylb.config.load import default_state_dir, load, parse, read_secrets_again, read_text
from pylb.config.problems import ConfigErrors, Place, Problem
from pylb.config.reference import reference
from pylb.config.root import Config, first_run_token
from pylb.config.schema import schema

__all__ = [
    "Config",
    "ConfigErrors",
    "Place",
    "Problem",
    "default_state_dir",
    "first_run_token",
    "load",
    "parse",
    "read_secrets_again",
    "read_text",
    "reference",
    "schema",
]
