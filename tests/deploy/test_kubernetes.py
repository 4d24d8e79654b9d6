"""The manifests: valid for Kubernetes and for KubeRay, rendered as committed, restricted as promised."""

import os
import shutil
import subprocess
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from fedvox.config import load_config
from fedvox.training.config import PretrainConfig

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
RENDERED = sorted((KUBERNETES / "rendered").glob("*.yaml"))
DOCUMENTS = [(file.stem, d) for file in RENDERED for d in yaml.safe_load_all(file.read_text())]
RAY = [(name, d) for name, d in DOCUMENTS if d["apiVersion"] == "ray.io/v1"]
NATIVE = [(name, d) for name, d in DOCUMENTS if d["apiVersion"] != "ray.io/v1"]


def named(pairs):
    return [pytest.param(d, id=f"{name}-{d['kind']}-{d['metadata']['name']}") for name, d in pairs]


def pods(document):
    """Every pod specification below a document, with the labels of its template."""
    if isinstance(document, dict):
        if "containers" in document:
            yield document
        for value in document.values():
            yield from pods(value)
    elif isinstance(document, list):
        for value in document:
            yield from pods(value)


def cluster_of(document):
    return document["spec"].get("rayClusterSpec", document["spec"])


@pytest.mark.parametrize("version", ["1.30", "1.37"])
@pytest.mark.parametrize("document", named(NATIVE))
def test_a_manifest_is_valid_for_the_oldest_and_the_newest_kubernetes(document, version):
    kubernetes_validate.validate(document, version, strict=True)


def test_the_schema_does_refuse():
    wrong = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"prots": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.37", strict=True)


@pytest.mark.parametrize("document", named(RAY))
def test_ray_clusters_and_jobs_have_kuberays_fields_and_valid_pods(document, kuberay_errors):
    assert kuberay_errors(document) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("autoscalerOptions", "version"), "v3"),
        (("enableInTreeAutoscaling",), "yes"),
        (("gcsFaultTolerance",), {}),
        (("headGroupSpec", "template", "spec", "container"), []),
        (("headGroupSpec", "rayStartParams"), {"num-cpus": 0}),
    ],
)
def test_a_misspelt_or_mistyped_field_of_a_ray_cluster_is_found(path, value, kuberay_errors):
    document = yaml.safe_load((KUBERNETES / "ray/cluster/raycluster.yaml").read_text())
    node = document["spec"]
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    assert kuberay_errors(document)


def strict(schema):
    """KubeRay's definition with every unknown field refused, as `kubectl apply` does."""
    if isinstance(schema, dict):
        if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema = {"additionalProperties": False, **schema}
        if schema.pop("x-kubernetes-int-or-string", False):
            schema.pop("type", None)
        return {key: strict(value) for key, value in schema.items()}
    return [strict(value) for value in schema] if isinstance(schema, list) else schema


@pytest.mark.skipif(
    "FEDVOX_KUBERAY_CRDS" not in os.environ, reason="needs KubeRay's definitions: see docs/deploy.md"
)
@pytest.mark.parametrize("document", named(RAY))
def test_ray_clusters_and_jobs_fit_the_definitions_of_kuberay_itself(document):
    file = Path(os.environ["FEDVOX_KUBERAY_CRDS"]) / f"ray.io_{document['kind'].lower()}s.yaml"
    versions = yaml.load(file.read_text(), yaml.CSafeLoader)["spec"]["versions"]
    schema = next(v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1")
    jsonschema.validate(document["spec"], strict(schema["properties"]["spec"]))


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
def test_the_committed_manifests_are_what_the_overlays_give(tmp_path):
    subprocess.run([KUBERNETES / "render.sh", tmp_path], check=True)
    assert {f.name: f.read_text() for f in tmp_path.iterdir()} == {f.name: f.read_text() for f in RENDERED}


@pytest.mark.parametrize("document", named(DOCUMENTS))
def test_every_pod_meets_the_restricted_standard_and_has_limits_and_a_read_only_root(document):
    for pod in pods(document):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod.get("automountServiceAccountToken") is False or pod["serviceAccountName"] == "fedvox-ray"
        volumes = {volume["name"] for volume in pod.get("volumes", [])} | {"data"}  # of the claim template
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])
            assert ":" in container["image"]
            assert not container["image"].endswith(":latest")
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes
            secrets = [e for e in container.get("env", []) if "value" in e and "PASS" in e["name"]]
            assert not secrets


@pytest.mark.parametrize("document", named(RAY))
def test_a_ray_cluster_scales_survives_its_head_and_has_shared_memory(document):
    cluster = cluster_of(document)
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]["secretKeyRef"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    spot = [g for g in cluster["workerGroupSpecs"] if g["groupName"].endswith("spot")]
    assert [g["minReplicas"] for g in spot] == [0]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        shared = next(v["emptyDir"] for v in pod["volumes"] if v["name"] == "shm")
        assert shared["medium"] == "Memory"
        assert {"name": "shm", "mountPath": "/dev/shm"} in pod["containers"][0]["volumeMounts"]
        assert pod["terminationGracePeriodSeconds"] >= 60


def test_the_job_runs_a_configuration_that_fits_its_nodes():
    job = next(d for name, d in RAY if name == "ray-job")
    *_, path = job["spec"]["entrypoint"].split()
    config = load_config(PretrainConfig, ROOT / path)
    groups = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    pod = groups[0]["template"]["spec"]["containers"][0]
    gpus = int(pod["resources"]["limits"]["nvidia.com/gpu"])
    fewest, most = config.compute.num_workers
    assert groups[0]["minReplicas"] * gpus >= fewest
    assert sum(group["maxReplicas"] for group in groups) * gpus >= most
    assert int(pod["resources"]["limits"]["cpu"]) >= gpus * config.compute.cpus_per_worker
    assert config.data.cache.folder in [mount["mountPath"] for mount in pod["volumeMounts"]]
    assert float(pod["resources"]["limits"]["ephemeral-storage"][:-2]) > config.data.cache.budget_gib


def test_ray_is_the_version_of_the_tested_set():
    tested = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    assert {cluster_of(d)["rayVersion"] for _, d in RAY} == {tested["ray"]}


def policies(stem):
    return {
        d["metadata"]["name"]: d["spec"]
        for name, d in NATIVE
        if name == stem and d["kind"] == "NetworkPolicy"
    }


@pytest.mark.parametrize("stem", [file.stem for file in RENDERED])
def test_whatever_no_policy_allows_is_forbidden(stem):
    default = policies(stem)["default-deny"]
    assert default["podSelector"] == {}
    assert default["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in default
    assert {p["port"] for rule in default["egress"] for p in rule["ports"]} == {53}


def test_nothing_reaches_a_clinic_and_a_clinic_reaches_one_address():
    spec = policies("flower-supernode-example")["supernode"]
    assert spec["ingress"] == []
    (rule,) = spec["egress"]
    assert rule == {
        "to": [{"ipBlock": {"cidr": "198.51.100.7/32"}}],
        "ports": [{"protocol": "TCP", "port": 8000}],
    }


def test_no_ray_pod_reaches_the_metadata_service_of_a_cloud():
    (block,) = [
        to["ipBlock"]
        for rule in policies("ray-cluster")["ray"]["egress"]
        for to in rule["to"]
        if "ipBlock" in to
    ]
    assert block["except"] == ["169.254.0.0/16"]


def commands():
    return list(_commands())


def _commands():
    for name, document in DOCUMENTS:
        for pod in pods(document):
            for container in pod["containers"]:
                if container.get("command", ["sh"])[0] not in ("sh", "bash"):
                    yield pytest.param(container["command"], id=f"{name}-{container['name']}")


@pytest.mark.parametrize("command", commands())
def test_every_command_takes_the_options_that_a_container_gives_it(command, options_of):
    program = tuple(part for part in command if not part.startswith("-"))
    known = options_of(*program)
    if program == ("fedvox-federation", "supernode"):
        known = known | options_of("flower-supernode")
    assert {part.split("=")[0] for part in command if part.startswith("-")} <= known
