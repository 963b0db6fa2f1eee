"""The shipped dashboard, Prometheus' configuration and the page about them agree with what the metrics process tells."""
from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from distributed_comfy.cli.metrics import metrics
from distributed_comfy.orchestrator.metric_families import families
from tests.unit.test_metric_families import READING

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "docker" / "monitoring"
LABEL = re.compile(r'(\w+)\s*=~?\s*"([^"]*)"')


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((MONITORING / "grafana/dashboards/distributed-comfy.json").read_text("utf-8"))
    return found


def expressions() -> list[str]:
    return [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]


def exported() -> dict[str, set[str]]:
    """Names of samples, each with its labels."""
    found: dict[str, set[str]] = {}
    for metric in families(READING):
        for sample in metric.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]
    return found


def mounted(service: str) -> dict[str, str]:
    """Path in the container -> path here."""
    volumes = (volume.split(":") for volume in services()[service]["volumes"])
    return {inside: source for source, inside, *_ in volumes if source.startswith("./")}


def test_every_metric_of_the_dashboard_is_exported() -> None:
    named = {name for expression in expressions() for name in re.findall(r"\bdistributed_comfy_\w+", expression)}
    assert len(named) > 15 and named <= set(exported())


def test_every_label_that_the_dashboard_chooses_or_sums_by_exists() -> None:
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            labels = set().union(*(exported()[name] for name in re.findall(r"\bdistributed_comfy_\w+", target["expr"])))
            summed = {label.strip() for group in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in group.split(",")}
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            chosen = {label for selector in re.findall(r"\{([^}]*)\}", target["expr"]) for label, _ in LABEL.findall(selector)}
            assert summed | shown | chosen <= labels, panel["title"]


def test_every_state_that_the_dashboard_chooses_exists() -> None:
    known = {value for metric in families(READING) for sample in metric.samples for value in sample.labels.values()}
    chosen = {value for text in expressions() for _, values in LABEL.findall(text) for value in values.split("|")}
    assert chosen and chosen <= known


def test_panels_have_ids_of_their_own_say_what_they_show_and_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["title"] and panel["description"].endswith(".") for panel in panels)
    places = [(x, y) for panel in panels for place in [panel["gridPos"]]
              for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])]  # fmt: skip
    assert len(places) == len(set(places)) and max(x for x, _ in places) < 24


def test_prometheus_asks_the_service_on_the_commands_port() -> None:
    (job,) = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    assert isinstance(metrics, click.Command)
    port = next(option.default for option in metrics.params if option.name == "port")
    assert job["static_configs"] == [{"targets": [f"metrics:{port}"]}]
    assert f":{port}/metrics" in " ".join(services()["metrics"]["healthcheck"]["test"])
    assert mounted("prometheus") == {"/etc/prometheus/prometheus.yml": "./docker/monitoring/prometheus.yml"}


def test_grafana_finds_its_datasource_and_its_dashboard() -> None:
    provisioning = MONITORING / "grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090" and "prometheus" in services()
    used = {json.dumps(panel["datasource"]) for panel in dashboard()["panels"]}
    assert used == {json.dumps({"type": source["type"], "uid": source["uid"]})}
    (provider,) = yaml.safe_load((provisioning / "dashboards/files.yml").read_text())["providers"]
    folders = mounted("grafana")
    assert folders[provider["options"]["path"]] == "./docker/monitoring/grafana/dashboards"
    home = re.search(r"default_home_dashboard_path = (\S+)", (MONITORING / "grafana/grafana.ini").read_text())
    assert home is not None and (ROOT / folders[str(Path(home[1]).parent)] / Path(home[1]).name).is_file()


@pytest.mark.parametrize("name", sorted({metric.name for metric in families(READING)}))
def test_the_page_about_metrics_explains_each(name: str) -> None:
    (metric,) = [metric for metric in families(READING) if metric.name == name]
    shown = f"{name}_total" if metric.type == "counter" else name
    assert f"`{shown.removeprefix('distributed_comfy_')}`" in (ROOT / "docs/monitoring.md").read_text("utf-8")
