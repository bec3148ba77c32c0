"""The deploy manifests are valid for the operator that reads them."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT.parent / "shared" / "schemas"
MANIFEST = ROOT / "deploy" / "rayjob-atlas.yaml"


def documents() -> dict[str, dict[str, Any]]:
    """Return the manifest's documents by kind."""
    return {document["kind"]: document for document in yaml.safe_load_all(MANIFEST.read_text())}


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


@pytest.fixture(scope="module")
def rayjob_schema() -> Any:
    """The schema of the RayJob version that the manifest names; skips where the definitions are absent."""
    path = SCHEMAS / "ray.io_rayjobs.yaml.gz"
    if not path.exists():
        pytest.skip("the custom resource definitions are not on this machine")
    definition = yaml.load(gzip.decompress(path.read_bytes()), yaml.CSafeLoader)  # libyaml: ten times faster
    version = documents()["RayJob"]["apiVersion"].removeprefix("ray.io/")
    (served,) = [item for item in definition["spec"]["versions"] if item["name"] == version and item["served"]]
    schema = strict(served["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def test_rayjob_is_valid_for_the_operator(rayjob_schema: Any) -> None:
    errors = jsonschema.Draft7Validator(rayjob_schema).iter_errors(documents()["RayJob"])
    assert [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in errors] == []


def test_the_check_notices_a_misspelt_key(rayjob_schema: Any) -> None:
    job = documents()["RayJob"]
    job["spec"]["backofLimit"] = job["spec"].pop("backoffLimit")
    assert not jsonschema.Draft7Validator(rayjob_schema).is_valid(job)


def test_rayjob_runs_the_pinned_ray() -> None:
    version = documents()["RayJob"]["spec"]["rayClusterSpec"]["rayVersion"]
    assert f"ray=={version}" in (ROOT / "requirements/cpu.txt").read_text().splitlines()


def test_every_volume_that_is_mounted_exists() -> None:
    cluster = documents()["RayJob"]["spec"]["rayClusterSpec"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_the_run_store_outlives_the_cluster() -> None:
    pod = documents()["RayJob"]["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    claims = [
        volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume
    ]
    assert claims == [documents()["PersistentVolumeClaim"]["metadata"]["name"]]
