"""Compose and Kubernetes: valid by their schemas, and true to the server and the image."""

import json
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from compose_spec import PyCompose

from simpleseg_server.sources import load

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
VERSIONS = ("1.30", "1.33", kubernetes_validate.latest_version())


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


KUSTOMIZATION = read(KUBERNETES / "kustomization.yaml")
OBJECTS = {one["kind"]: one for one in (read(KUBERNETES / n) for n in KUSTOMIZATION["resources"])}
DEPLOYMENT = OBJECTS["Deployment"]["spec"]
POD = DEPLOYMENT["template"]["spec"]
CONTAINER = POD["containers"][0]
COMPOSE = read(DEPLOY / "compose.yaml")
SERVER = COMPOSE["services"]["server"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", OBJECTS)
def test_an_object_keeps_to_its_schema(kind: str, version: str) -> None:
    kubernetes_validate.validate(OBJECTS[kind], version, strict=True)


def test_the_schema_is_looked_at() -> None:
    wrong = read(KUBERNETES / "deployment.yaml")
    wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_what_belongs_together_is_there() -> None:
    assert OBJECTS.keys() == {
        "Deployment",
        "Service",
        "PodDisruptionBudget",
        "HorizontalPodAutoscaler",
        "NetworkPolicy",
    }
    labels = DEPLOYMENT["template"]["metadata"]["labels"]
    assert DEPLOYMENT["selector"]["matchLabels"] == labels
    assert OBJECTS["Service"]["spec"]["selector"] == labels
    assert OBJECTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert OBJECTS["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    target = OBJECTS["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert target["name"] == OBJECTS["Deployment"]["metadata"]["name"]
    assert KUSTOMIZATION["images"][0]["name"] == CONTAINER["image"]


def test_ports_have_names_that_exist() -> None:
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    image = _image_settings()
    assert ports == {"http": 8000, "ops": int(image["SIMPLESEG_OPS_PORT"])}
    named = [
        rule["port"]
        for part in OBJECTS["NetworkPolicy"]["spec"]["ingress"]
        for rule in part["ports"]
    ]
    named += [port["targetPort"] for port in OBJECTS["Service"]["spec"]["ports"]]
    probes = {name: probe["httpGet"] for name, probe in CONTAINER.items() if name.endswith("Probe")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startupProbe": "/readyz",
        "readinessProbe": "/readyz",
        "livenessProbe": "/livez",
    }
    assert {*named, *(probe["port"] for probe in probes.values())} == {"http", "ops"}
    annotation = DEPLOYMENT["template"]["metadata"]["annotations"]["prometheus.io/port"]
    assert int(annotation) == ports["ops"]


def test_pods_have_no_more_rights_than_they_need() -> None:
    assert POD["securityContext"]["runAsNonRoot"]
    assert f"USER {POD['securityContext']['runAsUser']}:" in (ROOT / "Dockerfile").read_text()
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert POD["automountServiceAccountToken"] is False
    assert [mount["mountPath"] for mount in CONTAINER["volumeMounts"]] == ["/tmp"]
    assert OBJECTS["NetworkPolicy"]["spec"]["egress"] == []


def test_a_service_cannot_change_a_setting() -> None:
    """Kubernetes tells pods of a service `simpleseg` as SIMPLESEG_PORT, unless asked not to."""
    service = OBJECTS["Service"]["metadata"]["name"].upper()
    with pytest.raises(ValueError, match="port"):
        load({f"{service}_PORT": "tcp://10.0.0.1:80"})
    assert POD["enableServiceLinks"] is False


def test_stopping_has_the_time_that_it_takes() -> None:
    given = POD["terminationGracePeriodSeconds"]
    settings = load({one["name"]: one["value"] for one in CONTAINER["env"]}).settings
    assert (
        given >= CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"] + settings.shutdown_timeout_s
    )
    settings = load(SERVER["environment"]).settings
    assert int(SERVER["stop_grace_period"].rstrip("s")) > settings.shutdown_timeout_s


def test_the_gpu_s_patch_names_what_is_there() -> None:
    overlay = read(KUBERNETES / "gpu/kustomization.yaml")
    patch = read(KUBERNETES / "gpu" / overlay["patches"][0]["path"])
    assert patch["metadata"]["name"] == OBJECTS["Deployment"]["metadata"]["name"]
    pod = patch["spec"]["template"]["spec"]
    assert [one["name"] for one in pod["containers"]] == [CONTAINER["name"]]
    assert overlay["images"][0]["name"] == KUSTOMIZATION["images"][0]["newName"]
    merged = {**DEPLOYMENT, "template": {**DEPLOYMENT["template"], "spec": {**POD, **pod}}}
    merged["template"]["spec"]["containers"] = [CONTAINER | pod["containers"][0]]
    whole = OBJECTS["Deployment"] | {"spec": merged}
    whole["spec"]["template"]["spec"]["containers"][0]["startupProbe"] |= CONTAINER["startupProbe"]
    kubernetes_validate.validate(whole, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_compose_keeps_to_its_schema(name: str) -> None:
    content = read(DEPLOY / name)
    parsed = PyCompose.from_json(json.dumps(content))
    assert set(parsed.service_names()) == content["services"].keys()
    content["services"]["server"]["read_olny"] = True
    with pytest.raises(ValueError, match="read_olny"):
        PyCompose.from_json(json.dumps(content))


def test_compose_is_hardened_and_pinned() -> None:
    for name, service in COMPOSE["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert re.search(r":(cpu|v?\d+\.\d+\.\d+)$", service["image"]), name
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name


def test_what_compose_mounts_is_there() -> None:
    mounts = [m for service in COMPOSE["services"].values() for m in service.get("volumes", [])]
    for source in (mount.split(":")[0] for mount in mounts):
        assert (
            (DEPLOY / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
        )
    assert (DEPLOY / SERVER["build"]["context"] / "Dockerfile").resolve() == ROOT / "Dockerfile"


def test_grafana_knows_prometheus_and_prometheus_the_server() -> None:
    scrape = read(DEPLOY / "prometheus/prometheus.yml")
    (target,) = scrape["scrape_configs"][0]["static_configs"][0]["targets"]
    assert target == f"server:{_image_settings()['SIMPLESEG_OPS_PORT']}"
    assert "server" in COMPOSE["services"]
    (source,) = read(DEPLOY / "grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert source["jsonData"]["timeInterval"] == scrape["global"]["scrape_interval"]
    (provider,) = read(DEPLOY / "grafana/provisioning/dashboards/simpleseg.yaml")["providers"]
    mounts = [volume.split(":")[1] for volume in COMPOSE["services"]["grafana"]["volumes"]]
    assert f"{provider['options']['path']}/simpleseg.json" in mounts


def _image_settings() -> dict[str, str]:
    found = dict(re.findall(r"(SIMPLESEG_\w+)=(\S+)", (ROOT / "Dockerfile").read_text()))
    assert load(found).settings.ops_host == "0.0.0.0"
    return found
