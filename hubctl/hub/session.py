"""huggingface_hub's HTTP client, set up once per process: it gives up in time, and prints nothing."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from hubctl.errors import InputError
from hubctl.loopback import LOOPBACK

if TYPE_CHECKING:
    import httpx2

CONNECT_TIMEOUT_S = 4.0
"""A dead endpoint is reported after this long, not after huggingface_hub's minutes of retries."""
READ_TIMEOUT_S = 60.0
"""Between two bytes; a commit of many files keeps a registry busy for a while before it answers."""


def time_limits() -> Any:
    """For one request. huggingface_hub says it wants seconds, and hands on what it gets."""
    import httpx2

    return httpx2.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)


PAUSES_S = (0.1, 0.5, 2.0)
"""Before each further try after a connection dropped."""
XET_RETRIES = {"HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "5", "HF_XET_CLIENT_RETRY_BASE_DELAY": "500ms"}
"""hf_xet doubles the delay each time: a registry has 15 seconds to come back, not a minute and a half."""
_prepared = False
_prepare_lock = threading.Lock()


def prepare() -> None:
    """Once per process: time limits for huggingface_hub's shared HTTP client, and no printing by it."""
    global _prepared
    with _prepare_lock:
        if _prepared:
            return
        from hubctl.settings import export_defaults

        export_defaults(**XET_RETRIES)  # hf_xet reads nothing else, and reads it when it is loaded
        from huggingface_hub import set_client_factory
        from huggingface_hub.utils import logging
        from huggingface_hub.utils.tqdm import disable_progress_bars

        set_client_factory(_patient_client)
        disable_progress_bars()
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        _prepared = True


def _patient_client() -> httpx2.Client:
    """huggingface_hub's own client, but with time limits, and asking again when a connection drops.

    Raises:
        InputError: a proxy or file of certificates that the environment names cannot be used.
    """
    import httpx2
    from huggingface_hub.utils._http import default_client_factory

    class Gone(httpx2.TransportError):
        """Nobody listens any more. Of a class that huggingface_hub does not wait half a minute for."""

    class Patient(httpx2.Client):
        def send(self, request: httpx2.Request, **how: Any) -> httpx2.Response:
            pauses = iter(PAUSES_S if request.method in ("GET", "HEAD") else ())
            while True:
                try:
                    return super().send(request, **how)
                except httpx2.ConnectError as error:
                    raise Gone(str(error), request=request) from error
                except (httpx2.RemoteProtocolError, httpx2.NetworkError):
                    if (pause_s := next(pauses, None)) is None:
                        raise
                    time.sleep(pause_s)

    # As httpx2 names where requests go; a proxy of the environment cannot reach the loopback.
    direct = {f"all://[{host}]" if ":" in host else f"all://{host}": None for host in LOOPBACK}
    try:
        hooks = default_client_factory().event_hooks
        return Patient(event_hooks=hooks, follow_redirects=True, timeout=time_limits(), mounts=direct)
    except (httpx2.InvalidURL, ValueError, ImportError, OSError) as error:
        raise InputError(
            f"the environment's proxy or certificates cannot be used: {error}",
            hint="correct or unset HTTP_PROXY, HTTPS_PROXY, ALL_PROXY or SSL_CERT_FILE",
        ) from error
