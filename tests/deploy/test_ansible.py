"""deploy/ansible/site.yml, the example that people run as it is. (The role itself: tests/system/test_packages.py.)"""

from pathlib import Path

import yaml

from pylb import config
from tests.deploy.manifests import DEPLOY


def test_the_example_has_no_secret_and_a_config_that_pylb_accepts(tmp_path: Path) -> None:
    """It had a default for a secret that somebody forgot to set: a token that everybody could read here."""
    [play] = yaml.safe_load((DEPLOY / "ansible/site.yml").read_text())
    [role] = play["roles"]
    assert set(role["vars"]) == {"pylb_config"}
    assert "tokens" not in role["vars"]["pylb_config"]
    file = tmp_path / "pylb.yaml"
    file.write_text(yaml.safe_dump(role["vars"]["pylb_config"]).replace("{{ inventory_hostname }}", "lb.example.net"))
    loaded = config.load(file, {})
    assert loaded.warnings == ()
    assert (loaded.advertise, str(loaded.state_dir)) == ("lb.example.net", "/var/lib/pylb")
