"""Deployments rendered from one set of settings: Serve configs for three places, and a KubeRay RayService.

Pure: settings and a target in, plain tables out. The files in `deploy/` are this module's output for
`deploy/serve.toml`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal, get_args

from serve.config import BaseConfig, ServeConfig, config_to_args

Target = Literal["laptop", "gpu", "cluster", "kuberay"]
TARGETS: tuple[Target, ...] = get_args(Target)

APP_NAME = "hubctl"
IMPORT_PATH = "serve.app:build"
RAY_VERSION = "2.60.0"
"""What the image holds (constraints.txt) and KubeRay is told."""
IMAGE = "hubctl:latest"
SECRET = "hubctl-hub"
"""Kubernetes Secret with HF_ENDPOINT and HF_TOKEN. Tokens are in no rendered file."""
LAPTOP_REPLICAS = 2
"""Most replicas of a base on a laptop: each holds the base in memory."""
CLUSTER_INGRESS = 2
HEAD_CPUS, WORKER_CPUS = 2, 8
HEAD_MEMORY, WORKER_MEMORY = "8Gi", "64Gi"


def for_target(config: ServeConfig, target: Target) -> ServeConfig:
    """The settings as they apply in one place.

    laptop: CPU, this machine only, at most two replicas of each base.
    gpu: one replica of each base, and equal shares of the one GPU.
    cluster, kuberay: replicas as configured, each with a GPU unless it says otherwise; two ingress processes.
    """
    if target == "laptop":
        bases = tuple(_at_most(replace(base, num_gpus=0.0), LAPTOP_REPLICAS) for base in config.bases)
        return replace(config, host="127.0.0.1", bases=bases)
    if target == "gpu":
        share = math.floor(100 / len(config.bases)) / 100
        bases = tuple(replace(_at_most(base, 1), num_gpus=share) for base in config.bases)
        return replace(config, host="0.0.0.0", bases=bases)
    bases = tuple(replace(base, num_gpus=1.0) if base.num_gpus is None else base for base in config.bases)
    return replace(config, host="0.0.0.0", ingress_replicas=CLUSTER_INGRESS, bases=bases)


def render(config: ServeConfig, target: Target) -> dict[str, Any]:
    """The deployment for `target`: a Ray Serve config, or for `kuberay` a RayService."""
    placed = for_target(config, target)
    if target == "kuberay":
        return _ray_service(placed)
    return _serve_config(placed, everywhere=target == "cluster")


def to_yaml(config: ServeConfig, target: Target) -> str:
    """`render` as YAML."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Multi-line strings as blocks, so that the config inside a RayService can be read."""

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    return yaml.dump(render(config, target), Dumper=Dumper, sort_keys=False, width=110)


def _at_most(base: BaseConfig, replicas: int) -> BaseConfig:
    return replace(
        base, min_replicas=min(base.min_replicas, replicas), max_replicas=min(base.max_replicas, replicas)
    )


def _serve_config(config: ServeConfig, *, everywhere: bool) -> dict[str, Any]:
    args = config_to_args(config)
    # Where HTTP listens is Ray's business here, and these keys would only look as if they meant something.
    for key in ("host", "port", "ray_address"):
        args.pop(key, None)
    return {
        "proxy_location": "EveryNode" if everywhere else "HeadOnly",
        "http_options": {"host": config.host, "port": config.port},
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
        "applications": [
            {"name": APP_NAME, "route_prefix": "/", "import_path": IMPORT_PATH, "args": args},
        ],
    }


def _ray_service(config: ServeConfig) -> dict[str, Any]:
    import yaml

    # One worker pod holds one GPU; replicas with a fraction share one.
    least = sum(base.min_replicas * (base.num_gpus or 0) for base in config.bases)
    most = sum(base.max_replicas * (base.num_gpus or 0) for base in config.bases)
    least_pods, most_pods = math.ceil(least), max(1, math.ceil(most))
    ports = [
        {"containerPort": 6379, "name": "gcs-server"},
        {"containerPort": 8265, "name": "dashboard"},
        {"containerPort": config.port, "name": "serve"},
    ]
    head = _container("ray-head", cpus=HEAD_CPUS, memory=HEAD_MEMORY, gpus=0) | {"ports": ports}
    worker = _container("ray-worker", cpus=WORKER_CPUS, memory=WORKER_MEMORY, gpus=1)
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": APP_NAME},
        "spec": {
            "serveConfigV2": yaml.safe_dump(_serve_config(config, everywhere=True), sort_keys=False),
            "rayClusterConfig": {
                "rayVersion": RAY_VERSION,
                "authOptions": {"mode": "token"},  # Ray's own ports take commands from whoever reaches them
                "enableInTreeAutoscaling": True,
                "headGroupSpec": {
                    # No replica on the head: only the ingress, which asks for no CPU.
                    "rayStartParams": {"dashboard-host": "0.0.0.0", "num-cpus": "0"},
                    "template": {"spec": {"containers": [head]}},
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "gpu",
                        "replicas": least_pods,
                        "minReplicas": least_pods,
                        "maxReplicas": most_pods,
                        "rayStartParams": {},
                        "template": {"spec": {"containers": [worker]}},
                    }
                ],
            },
        },
    }


def _container(name: str, *, cpus: int, memory: str, gpus: int) -> dict[str, Any]:
    size: dict[str, Any] = {"cpu": str(cpus), "memory": memory}
    if gpus:
        size["nvidia.com/gpu"] = gpus
    return {
        "name": name,
        "image": IMAGE,
        "envFrom": [{"secretRef": {"name": SECRET, "optional": True}}],
        "resources": {"requests": size, "limits": dict(size)},
    }
