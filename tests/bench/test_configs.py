"""Generated configurations, read back by the programs they are for."""

import subprocess

import pytest
import yaml

from bench import configs, targets


def test_pylb_gets_a_frontend_to_each_origin_and_nothing_beyond_loopback(wiring):
    config = yaml.safe_load(configs.pylb(wiring))

    assert [(f["listen"], f["servers"]) for f in config["frontends"]] == [
        (str(wiring.proxy_http), [str(wiring.origin_http)]),
        (str(wiring.proxy_bulk), [str(wiring.origin_bulk)]),
    ]
    assert config["workers"] == 0
    listens = [config["webhook"][0]["listen"], config["admin"]["listen"], f"{config['defaults']['bind']}:0"]
    assert all(listen.startswith("127.0.0.1:") for listen in listens)


def test_the_token_of_a_run_is_strong_private_and_may_register_what_the_scenario_registers(wiring):
    (token,) = yaml.safe_load(configs.pylb(wiring))["tokens"]

    assert len(configs.token_file(wiring).read_text()) >= 22
    assert configs.token_file(wiring).stat().st_mode & 0o777 == 0o600
    assert token["ports"] == ["18000-19999"]
    assert token["target_ports"] == [wiring.origin_http.port, wiring.origin_other.port]
    assert token["targets"] == ["127.0.0.1/32"]


@pytest.mark.parametrize("name", ["haproxy", "haproxy2", "haproxy-splice"])
def test_haproxy_accepts_its_config(name, wiring, peer):
    file = wiring.folder / "haproxy.cfg"
    file.write_text(targets.KINDS[name].render(wiring))

    subprocess.run([peer("haproxy"), "-c", "-f", file], check=True, timeout=20, capture_output=True)


def test_haproxy_splices_only_where_the_name_says_so(wiring):
    spliced = [name for name, kind in targets.KINDS.items() if "splice-auto" in kind.render(wiring)]

    assert spliced == ["haproxy-splice"]


def test_nginx_accepts_its_stream_config_and_that_of_the_origin(wiring, peer):
    for text in (configs.nginx(wiring, targets.stream_module()), configs.origin(wiring)):
        file = wiring.folder / "nginx.conf"
        file.write_text(text)
        done = subprocess.run([peer("nginx"), "-t", "-c", file], check=False, timeout=20, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_all_ports_of_a_wiring_differ_and_lie_outside_the_ephemeral_range(wiring):
    ports = {address.port for _, *addresses in wiring.routes for address in addresses}
    ports |= {wiring.webhook.port, wiring.admin.port}

    assert len(ports) == 6
    assert ports <= set(targets.OWN_PORTS)  # tests/support/test_ports.py says what they must lie outside of
