from __future__ import annotations

import functools
import importlib.metadata
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import yaml

import hubctl.cli.serve
from serve import deploy
from serve.config import config_from_args, load_config

ROOT = Path(__file__).parent.parent.parent
SETTINGS = load_config(ROOT / "deploy/serve.toml")
SCHEMAS = ROOT.parent / "shared/data"


@pytest.mark.parametrize("target", deploy.TARGETS)
def test_files_in_deploy_are_what_the_settings_give(target: deploy.Target) -> None:
    committed = (ROOT / f"deploy/{target}.yaml").read_text()
    command = f"hubctl serve --config deploy/serve.toml --render {target} > deploy/{target}.yaml"
    assert committed == deploy.to_yaml(SETTINGS, target), f"run: {command}"


def test_command_line_knows_the_targets() -> None:
    assert get_args(deploy.Target) == hubctl.cli.serve.TARGETS


@pytest.mark.parametrize("target", ["laptop", "gpu", "cluster"])
def test_args_lead_back_to_the_settings_of_the_place(target: deploy.Target) -> None:
    rendered = deploy.render(SETTINGS, target)
    again = config_from_args(rendered["applications"][0]["args"])
    placed = deploy.for_target(SETTINGS, target)
    assert (again.bases, again.limits, again.remote) == (placed.bases, placed.limits, placed.remote)
    assert rendered["http_options"] == {"host": placed.host, "port": placed.port}


def test_places_differ_as_they_should() -> None:
    laptop, gpu, cluster = (deploy.for_target(SETTINGS, t) for t in ("laptop", "gpu", "cluster"))
    assert {(b.num_gpus, b.max_replicas) for b in laptop.bases} == {(0.0, deploy.LAPTOP_REPLICAS)}
    assert laptop.host == "127.0.0.1"
    assert sum(b.num_gpus or 0 for b in gpu.bases) <= 1
    assert {b.max_replicas for b in gpu.bases} == {1}
    assert [b.num_gpus for b in cluster.bases] == [1.0, 1.0]
    assert [b.max_replicas for b in cluster.bases] == [4, 4]


def test_ray_itself_accepts_the_serve_configs() -> None:
    # In a process of its own: unit tests do not import Ray.
    code = """
import sys, yaml
from ray.serve.schema import ServeDeploySchema
for path in sys.argv[1:]:
    data = yaml.safe_load(open(path))
    if data.get("kind") == "RayService":
        data = yaml.safe_load(data["spec"]["serveConfigV2"])
    print(ServeDeploySchema.model_validate(data).applications[0].import_path)
"""
    files = [str(ROOT / f"deploy/{target}.yaml") for target in deploy.TARGETS]
    done = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["serve.app:build"] * 4


def test_kuberay_is_told_the_version_that_is_installed() -> None:
    assert importlib.metadata.version("ray") == deploy.RAY_VERSION


def test_no_secret_is_rendered() -> None:
    text = deploy.to_yaml(SETTINGS, "kuberay")
    assert deploy.SECRET in text
    assert "hf_" not in text


def closed(schema: Any) -> Any:
    """The schema with unknown fields refused, as the Kubernetes API server prunes or rejects them."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: closed(value) for key, value in schema.items()}
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not open_ended:
        schema["additionalProperties"] = False
    if schema.pop("x-kubernetes-int-or-string", False):
        schema.pop("type", None)
        schema["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    return schema


@functools.cache  # two megabytes of YAML
def kuberay() -> jsonschema.Draft202012Validator:
    path = SCHEMAS / "ray.io_rayservices.yaml"
    if not path.is_file():
        pytest.skip(f"no KubeRay CRD schemas beside the repository ({path})")
    crd = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = [v for v in crd["spec"]["versions"] if v["name"] == "v1"]
    schema = closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(schema)


def test_ray_service_is_valid_for_kuberay() -> None:
    kuberay().validate(deploy.render(SETTINGS, "kuberay"))


@pytest.mark.parametrize("fault", ["unknown field", "wrong type", "missing field"])
def test_that_check_would_notice(fault: str) -> None:
    manifest = deploy.render(SETTINGS, "kuberay")
    cluster = manifest["spec"]["rayClusterConfig"]
    if fault == "unknown field":
        cluster["workerGroups"] = []
    elif fault == "wrong type":
        cluster["workerGroupSpecs"][0]["maxReplicas"] = "five"
    else:
        del cluster["headGroupSpec"]
    with pytest.raises(jsonschema.ValidationError):
        kuberay().validate(manifest)


def test_ray_service_pods_fit_the_replicas() -> None:
    (workers,) = deploy.render(SETTINGS, "kuberay")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    # A GPU for each replica: at least one of both bases, at most four.
    assert (workers["minReplicas"], workers["maxReplicas"]) == (2, 8)
