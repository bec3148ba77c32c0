"""The manifests are valid for the operator that reads them, ask for a token, and hold the runs that they start."""

from __future__ import annotations

import copy
import gzip
import re
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from deploy_files import DEPLOY, MANIFESTS, ROOT, cluster_spec, commands, documents, groups, parse, ray_document

from genevolve_ray import __version__
from genevolve_ray.config import load_config
from genevolve_ray.doctor.plan import make_plan

SCHEMAS = ROOT.parent / "shared" / "schemas"
EVERY = pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
JOBS = pytest.mark.parametrize(
    "path", [path for path in MANIFESTS if ray_document(path)["kind"] == "RayJob"], ids=lambda path: path.name
)


def strict(schema: Any) -> Any:
    """Forbid unknown keys where a schema lists its own: the API server drops them silently, we want to hear of them."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: strict(value) for key, value in schema.items()}
    is_object_schema = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if is_object_schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    return result


@cache
def validator(kind: str, version: str) -> Any:
    """The operator's own schema of a kind; skips where the definitions are absent."""
    path = SCHEMAS / f"ray.io_{kind.lower()}s.yaml.gz"
    if not path.exists():
        pytest.skip("the custom resource definitions are not on this machine")
    definition = yaml.load(gzip.decompress(path.read_bytes()), yaml.CSafeLoader)  # libyaml: ten times faster
    (served,) = [item for item in definition["spec"]["versions"] if item["name"] == version and item["served"]]
    schema = strict(served["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft7Validator(schema)


def errors(document: dict[str, Any]) -> list[str]:
    """Return what the operator's schema finds wrong with a document."""
    check = validator(document["kind"], document["apiVersion"].removeprefix("ray.io/"))
    return [f"{'/'.join(map(str, e.absolute_path))}: {e.message}" for e in check.iter_errors(document)]


def containers(path: Path) -> list[dict[str, Any]]:
    """Return every container of a manifest's Ray pods."""
    return [c for group in groups(ray_document(path)) for c in group["template"]["spec"]["containers"]]


def nodes(path: Path, bound: str) -> list[dict[str, float]]:
    """Return the Ray nodes that a manifest brings up at `minReplicas` or `maxReplicas`, the head first."""
    head, *workers = groups(ray_document(path))
    found = []
    for group, count in [(head, 1), *((group, group[bound]) for group in workers)]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        cpus = group["rayStartParams"].get("num-cpus", limits["cpu"])
        node = {"CPU": float(cpus), "GPU": float(limits.get("nvidia.com/gpu", 0))}
        found += [dict(node) for _ in range(count)]
    return found


# --- for the operator ------------------------------------------------------------------------------------------------


def test_there_is_a_cluster_and_a_job_with_gpus() -> None:
    assert {ray_document(path)["kind"] for path in MANIFESTS} == {"RayCluster", "RayJob"}
    assert {path.name for path in MANIFESTS if nodes(path, "minReplicas")[1]["GPU"]} >= {"rayjob-paper.yaml"}


@EVERY
def test_a_manifest_is_valid_for_the_operator(path: Path) -> None:
    assert errors(ray_document(path)) == []


@EVERY
def test_the_check_notices_a_misspelt_key(path: Path) -> None:
    document = copy.deepcopy(ray_document(path))
    cluster_spec(document)["authOption"] = cluster_spec(document).pop("authOptions")
    assert [error for error in errors(document) if "authOption" in error]


@EVERY
def test_a_manifest_runs_the_pinned_ray_and_this_version(path: Path) -> None:
    version = cluster_spec(ray_document(path))["rayVersion"]
    assert f"ray=={version}" in (ROOT / "requirements/cpu.txt").read_text().splitlines()
    images = {container["image"] for container in containers(path)}
    assert images <= {f"genevolve-ray:{__version__}-cpu", f"genevolve-ray:{__version__}-cuda"}


@EVERY
def test_every_volume_that_is_mounted_exists(path: Path) -> None:
    for group in groups(ray_document(path)):
        pod = group["template"]["spec"]
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


@EVERY
def test_pods_with_a_gpu_run_the_image_for_it(path: Path) -> None:
    for container in containers(path):
        wants = "nvidia.com/gpu" in container["resources"]["limits"]
        assert container["image"].endswith("-cuda" if wants else "-cpu")
        assert container["resources"]["limits"] == container["resources"]["requests"]


# --- security --------------------------------------------------------------------------------------------------------


@EVERY
def test_ray_asks_for_a_token_in_every_pod(path: Path) -> None:
    auth = cluster_spec(ray_document(path))["authOptions"]
    assert auth["mode"] == "token"
    for container in containers(path):
        environment = {entry["name"]: entry for entry in container["env"]}
        assert environment["RAY_AUTH_MODE"]["value"] == "token"
        reference = environment["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
        assert reference == {"name": auth["secretName"], "key": "auth_token"}


@EVERY
def test_no_secret_stands_in_a_manifest(path: Path) -> None:
    assert "Secret" not in {document["kind"] for document in documents(path)}
    plain = [entry["name"] for container in containers(path) for entry in container["env"] if "valueFrom" not in entry]
    assert set(plain) == {"RAY_AUTH_MODE"}


@EVERY
def test_pods_have_no_rights_that_they_do_not_need(path: Path) -> None:
    autoscaling = cluster_spec(ray_document(path)).get("enableInTreeAutoscaling", False)
    for number, group in enumerate(groups(ray_document(path))):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        if not (number == 0 and autoscaling):  # the autoscaler talks to Kubernetes
            assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }


# --- what dies, and what happens then --------------------------------------------------------------------------------


@JOBS
def test_a_job_starts_a_lost_driver_again_and_keeps_its_run(path: Path) -> None:
    spec = ray_document(path)["spec"]
    assert spec["backoffLimit"] >= 1
    (command,) = [c for c in commands(path) if c[0] == "evolve"]
    run = parse(command).params["run"]
    pod = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (volume,) = [m["name"] for m in pod["containers"][0]["volumeMounts"] if run.is_relative_to(m["mountPath"])]
    claims = {v["name"]: v.get("persistentVolumeClaim", {}).get("claimName") for v in pod["volumes"]}
    (claim,) = [d for d in documents(path) if d["kind"] == "PersistentVolumeClaim"]
    assert claims[volume] == claim["metadata"]["name"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


@EVERY
def test_pods_have_time_to_end_in_good_order(path: Path) -> None:
    head, *workers = groups(ray_document(path))
    (script,) = head["template"]["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][2:]
    assert "pkill -TERM -f '[g]enevolve evolve'" in script  # the brackets keep it from finding itself
    assert head["template"]["spec"]["terminationGracePeriodSeconds"] >= 120
    for group in workers:
        stop = group["template"]["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
        seconds = int(stop.removeprefix("ray stop --grace-period "))
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] > seconds


# --- what runs -------------------------------------------------------------------------------------------------------


@EVERY
def test_groups_have_bounds(path: Path) -> None:
    for group in groups(ray_document(path))[1:]:
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@JOBS
def test_the_run_fits_what_is_there_when_it_starts(path: Path) -> None:
    (command,) = [c for c in commands(path) if c[0] == "evolve"]
    parsed = parse(command).params
    config = load_config(parsed["preset"], parsed["settings"])
    plan = make_plan(config, nodes(path, "minReplicas"))
    assert plan.obstacle == ""
    largest = nodes(path, "maxReplicas")
    for resource in ("CPU", "GPU"):
        assert plan.total(resource, most=True) <= sum(node[resource] for node in largest)


def test_plug_ins_of_the_paper_job_take_their_settings() -> None:
    (command,) = commands(DEPLOY / "rayjob-paper.yaml")
    config = load_config("paper", parse(command).params["settings"])
    for role in ("requests", "tools", "renderer", "judge", "summariser"):
        spec = getattr(config, role)
        spec.resolve().Config.model_validate(spec.config)
    left = [line for line in yaml.safe_dump(config.model_dump(mode="json")).splitlines() if "FILL_IN" in line]
    assert left == []


def test_the_paper_job_has_every_key_that_its_services_ask_for() -> None:
    path = DEPLOY / "rayjob-paper.yaml"
    (command,) = commands(path)
    config = load_config("paper", parse(command).params["settings"])
    asked = set(re.findall(r"'token_env': '(\w+)'", str(config.model_dump())))
    assert asked == {"GENEVOLVE_JUDGE_KEY", "SERPER_API_KEY"}
    for container in containers(path):
        assert asked <= {entry["name"] for entry in container["env"]}
