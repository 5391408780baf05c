"""What a pipeline holds for a heavy module: an object of its class whose calls go to the owner thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol

from torch import nn

from serve.engine.shared_module import SharedModule


class Caller(Protocol):
    """What a proxy hands its calls to: a `Client`, or what stands before one."""

    def call(self, module: SharedModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the module's method; see `Client.call`."""


def proxy(client: Caller, *methods: SharedModule) -> Any:
    """An object of a module's own class for one request's pipeline; calls of `methods` go to the owner."""
    real: Any = type(methods[0].module)
    return _proxy_class(real, tuple(m.shape.method for m in methods))(client, methods)


@cache
def _proxy_class(real: Any, names: tuple[str, ...]) -> Callable[..., nn.Module]:
    def __init__(self: Any, client: Caller, methods: Sequence[SharedModule]) -> None:
        nn.Module.__init__(self)
        # Past nn.Module.__setattr__, which would take the real module in as a child.
        self.__dict__["_client"], self.__dict__["_methods"] = client, methods

    def __getattr__(self: Any, name: str) -> Any:
        return getattr(self.__dict__["_methods"][0].module, name)

    def method(i: int) -> Callable[..., Any]:
        return lambda self, *args, **kwargs: self._client.call(self._methods[i], args, kwargs)

    def same(name: str) -> property:
        return property(lambda self: getattr(self._methods[0].module, name))

    namespace = {
        "__init__": __init__,
        "__getattr__": __getattr__,
        "__module__": real.__module__,
        **{name: method(i) for i, name in enumerate(names)},
        **{name: same(name) for name in ("config", "dtype")},
        "device": property(lambda self: self._methods[0].device),
    }
    return type(real.__name__, (real,), namespace)
