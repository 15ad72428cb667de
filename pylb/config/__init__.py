"""pylb.yaml: parsed once, at the edge, into frozen values; every mistake is reported with its line and a remedy.

`yamlplace` reads the text and records the places, `models` and `values` say what is allowed where, `checks` and `files` look
across entries and at the disk, and `load` combines them. No other folder sees YAML, the environment or a raw duration.
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
