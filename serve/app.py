"""The server on Ray Serve: a CPU ingress for HTTP and one engine deployment for each base.

The only file that imports `ray`. `build` is what Serve configs name (`serve.app:build`); `run` is behind
`hubctl serve`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray import serve as ray_serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from hubctl.base_models import locate_base
from hubctl.cpu import CPU_ENVIRONMENT
from hubctl.errors import HubctlError, OverloadedError, UnavailableError
from hubctl.hub.lock import LockFile, check_files, fetch_base, lookup_locked
from hubctl.refs import PinnedRef
from hubctl.settings import environment, export_defaults
from serve.api import create_app
from serve.config import BaseConfig, ServeConfig, config_from_args, share_cpus, share_gpus
from serve.encodable import encodable_error
from serve.engine.requests import EngineInfo, ImageRequest, ImageResult, SegmentRequest, SegmentResult
from serve.resolve import hidden
from serve.startup import hints_in_tracebacks, start_fault

R = TypeVar("R")

APP_NAME = "hubctl"
INFO_TIMEOUT_S = 2.0
"""An engine that is up tells its state at once, whatever it is working on."""
RETRY_AFTER_S = 2.0
INGRESS_ONGOING = 1024
"""Requests that one ingress process holds open; almost all of them wait for an engine."""
OBJECT_STORE_BYTES = 256 << 20
"""Ray's store for results on their way from engine to ingress. Its own default is a third of the memory."""


class EngineReplica:
    """One engine in one process. Its calls block: each has a thread of its own, all meet in the engine."""

    def __init__(self, base: BaseConfig, remote: str | None, locked: LockFile | None = None) -> None:
        # Heavy, and not needed by the processes that only deploy this class.
        from hubctl.hub.cache import lease
        from hubctl.hub.pull import pull
        from hubctl.hub.remotes import connect
        from serve.engine.engine import open_engine

        hub, cache = connect(remote), environment().cache

        def fetch(pinned: PinnedRef) -> Path:
            with hidden(pinned):
                path = pull(hub, pinned, cache=cache).path
                if locked is not None:
                    check_files(path, locked.adapters[pinned.repo_id], pinned.repo_id)
                return path

        with hints_in_tracebacks():
            model = locate_base(base.ref, fetch=partial(fetch_base, hub, locked))
            if model.path.is_relative_to(cache):
                self._lease = lease(model.path)  # adapters come and go, and must not push it out of the cache
            self._engine = open_engine(model, base.engine, fetch)
        self._threads = ThreadPoolExecutor(base.ongoing_requests, thread_name_prefix="request")

    async def generate(self, request: ImageRequest) -> ImageResult:
        """Make images."""
        return await self._in_thread(self._engine.generate, request)

    async def segment(self, request: SegmentRequest) -> SegmentResult:
        """Label an image."""
        return await self._in_thread(self._engine.segment, request)

    async def info(self) -> EngineInfo:
        """The engine's state."""
        return self._engine.info()

    def __del__(self) -> None:
        if hasattr(self, "_engine"):  # not when the constructor failed
            self._engine.close()

    async def _in_thread(self, call: Callable[[Any, threading.Event], R], request: object) -> R:
        cancelled = threading.Event()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call, request, cancelled)
        except Exception as error:
            if (told := encodable_error(error)) is not error:
                raise told from None  # Ray would end this process over the characters
            raise
        finally:
            # Ray cancels this task when the client leaves; the thread learns of it here.
            cancelled.set()


class RayEngines:
    """The `EngineClient` of the ingress: deployment handles, and Ray's errors turned back into ours."""

    def __init__(self, handles: Mapping[str, DeploymentHandle]) -> None:
        self._handles = handles

    async def generate(self, base: str, request: ImageRequest) -> ImageResult:
        """Make images on a replica of `base`."""
        return await _answer(base, self._handles[base].generate.remote(request))

    async def segment(self, base: str, request: SegmentRequest) -> SegmentResult:
        """Label an image on a replica of `base`."""
        return await _answer(base, self._handles[base].segment.remote(request))

    async def infos(self) -> dict[str, EngineInfo | None]:
        """The state of one replica of each base; None where none answers."""
        found = await asyncio.gather(*(self._info(handle) for handle in self._handles.values()))
        return dict(zip(self._handles, found, strict=True))

    async def _info(self, handle: DeploymentHandle) -> EngineInfo | None:
        try:
            return await asyncio.wait_for(handle.info.remote(), INFO_TIMEOUT_S)
        except (TimeoutError, RayError, RayServeException):
            return None


async def _answer(base: str, response: Awaitable[R]) -> R:
    try:
        return await response
    except RayTaskError as error:
        if isinstance(error.cause, (HubctlError, TimeoutError)):
            raise error.cause from None
        raise  # a bug in the engine: its traceback goes to the log
    except BackPressureError as error:
        raise OverloadedError(
            f"too many requests wait for {base}", hint="come back later", retry_after_s=RETRY_AFTER_S
        ) from error
    except (RayError, RayServeException) as error:
        raise UnavailableError(f"no engine of {base} could answer: {type(error).__name__}") from error


@ray_serve.ingress()
class Ingress:
    """The HTTP side, in a process without a GPU."""

    def __init__(self, config: ServeConfig, handles: dict[str, DeploymentHandle]) -> None:
        self._config, self._handles = config, handles

    def __serve_build_asgi_app__(self) -> Any:
        """Ray Serve calls this in the replica, once the handles are there."""
        from hubctl.hub.remotes import connect

        hub = connect(self._config.remote)
        # Ray's proxy puts the request id on both the request and the answer.
        locked = self._config.locked
        lookup = hub.adapter_info if locked is None else partial(lookup_locked, hub.adapter_info, locked)
        return create_app(self._config, RayEngines(self._handles), lookup, send_request_id=False)


def build(args: dict[str, Any]) -> ray_serve.Application:
    """The application that a Serve config names; `args` has the keys of `serve.toml`."""
    return application(config_from_args(args))


def application(config: ServeConfig) -> ray_serve.Application:
    """The ingress bound to one engine deployment for each base."""
    engines = {base.name: _engine_deployment(base, config) for base in config.bases}
    ingress = ray_serve.deployment(Ingress).options(
        name="ingress",
        num_replicas=config.ingress_replicas,
        max_ongoing_requests=INGRESS_ONGOING,
        ray_actor_options={"num_cpus": 0},
    )
    return ingress.bind(config, engines)


def _engine_deployment(base: BaseConfig, config: ServeConfig) -> ray_serve.Application:
    scaling: dict[str, Any] = {"num_replicas": base.max_replicas}
    if base.min_replicas != base.max_replicas:
        scaling = {
            "autoscaling_config": {
                "min_replicas": base.min_replicas,
                "max_replicas": base.max_replicas,
                "target_ongoing_requests": base.target_ongoing_requests,
            }
        }
    deployment = ray_serve.deployment(EngineReplica).options(
        name=f"engine-{base.name}",
        max_ongoing_requests=base.ongoing_requests,
        max_queued_requests=base.max_queued_requests,
        max_constructor_retry_count=3,
        # A replica that is scaled away finishes what it has begun.
        graceful_shutdown_timeout_s=config.limits.timeout_s,
        ray_actor_options={
            "num_cpus": 1.0 if base.num_cpus is None else base.num_cpus,
            "num_gpus": base.num_gpus or 0,
            "runtime_env": {"env_vars": CPU_ENVIRONMENT},
        },
        **scaling,
    )
    return deployment.bind(base, config.remote, config.locked)


def run(config: ServeConfig, *, ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; call `ready` with the server's URL once every base is loaded.

    `config` comes from `serve.preflight.prepare`, which finds faults of the user before Ray starts.

    Raises:
        UnavailableError: there is no Ray cluster at `config.ray_address`.
        HubctlError: what an engine raised, if none of its replicas could start.
    """
    local = config.ray_address is None
    serving = False
    _stop_on_signals()
    try:
        if local:
            config = share_cpus(config, os.cpu_count() or 1)
        _start_ray(config)
        _stop_on_signals()
        if local:
            config = share_gpus(config, ray.cluster_resources().get("GPU", 0.0))
        quiet = {"log_level": "WARNING", "enable_access_log": False}
        ray_serve.start(
            proxy_location="HeadOnly",
            http_options={"host": config.host, "port": config.port},
            logging_config=quiet,
        )
        try:
            ray_serve.run(application(config), name=APP_NAME, route_prefix="/", logging_config=quiet)
        except RuntimeError as error:
            raise _start_error() or error from error
        serving = True
        ready(f"http://{_in_url(config.host)}:{config.port}")
        threading.Event().wait()
    except KeyboardInterrupt:
        if not serving:
            raise
    finally:
        # On a cluster other people's applications go on; a Ray of our own just ends.
        if ray.is_initialized() and not local:
            ray_serve.delete(APP_NAME)
        ray.shutdown()


def _start_error() -> Exception | None:
    """What the engines that failed to start say: Ray's own error names them and nothing else."""
    deployments = ray_serve.status().applications[APP_NAME].deployments.items()
    failed = [(name, found.message) for name, found in deployments if found.status == "DEPLOY_FAILED"]
    if not failed:
        return None
    return start_fault(failed) or RuntimeError("\n".join(text for _, text in failed))


def _start_ray(config: ServeConfig) -> None:
    # Ray kills a proxy that takes five seconds to start, as on a busy computer, and the server ends with it.
    export_defaults(RAY_USAGE_STATS_ENABLED="0", RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S="60")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if config.ray_address is not None:
        try:
            ray.init(address=config.ray_address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UnavailableError(
                f"no Ray cluster at {config.ray_address}: {error}", hint="ray start --head"
            ) from error
        return
    # Ray's own ports listen on every interface; a local Ray turns token authentication on by itself.
    # Logical CPUs only decide what Ray starts: the replicas are to fit on any machine.
    needed = math.ceil(sum(base.max_replicas * (base.num_cpus or 0) for base in config.bases))
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, needed),
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def _in_url(host: str) -> str:
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1" if host == "0.0.0.0" else "[::1]"
    return f"[{host}]" if ":" in host else host


def _stop_on_signals() -> None:
    """Make SIGINT and SIGTERM a KeyboardInterrupt, so that one path stops everything that was started.

    SIGINT too: a shell starts background jobs with it ignored, and Python then leaves it so. To be called
    again once Ray has started: it sets handlers of its own.
    """

    def interrupt(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)
