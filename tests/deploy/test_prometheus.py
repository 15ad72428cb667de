"""The scrape example and the line for pylb.yaml in its header belong together."""

import re

from tests.deploy.manifests import DEPLOY, parse

FILE = DEPLOY / "prometheus/scrape.yaml"


def test_the_scrape_job_asks_the_port_that_its_header_opens() -> None:
    (document,) = parse(FILE.read_text())
    (job,) = document["scrape_configs"]
    assert job["job_name"] == "pylb"
    ((target,),) = [config["targets"] for config in job["static_configs"]]
    opened = re.search(r'metrics: \{listen: "\*:(\d+)", allow: \[', FILE.read_text())
    assert opened
    assert target == f"lb.example.net:{opened[1]}"
