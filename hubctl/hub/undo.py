"""Removed repositories, and how they come back: what a registry of hubctl keeps, and others do not."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from hubctl.errors import ConflictError, InputError, NotFoundError
from hubctl.hub.client import Hub
from hubctl.hub.faults import translated
from hubctl.hub.tokens import HF_URL


@dataclass(frozen=True, kw_only=True, slots=True)
class Removed:
    """A repository that can come back."""

    repo_id: str
    private: bool
    removed: datetime
    removed_by: str


def removed(hub: Hub) -> list[Removed] | None:
    """The models that this user may restore, the latest first; None on a registry that keeps none."""
    if hub.endpoint == HF_URL:
        return None
    try:
        found = _ask(hub, "GET", "removed", "what was removed")
    except NotFoundError:
        return None
    try:
        return [
            Removed(
                repo_id=str(one["id"]),
                private=bool(one["private"]),
                removed=datetime.fromisoformat(one["removedAt"]),
                removed_by=str(one["removedBy"]),
            )
            for one in found
            if one["type"] == "model"
        ]
    except (KeyError, TypeError, ValueError):
        return None  # some other hub's own idea of this address


def restore(hub: Hub, repo_id: str) -> None:
    """Bring a removed repository back, with its history.

    Raises:
        NotFoundError: it is not kept, or this registry keeps nothing.
        ConflictError: another repository has the name.
    """
    kept = removed(hub)
    if kept is None:
        raise InputError(f"{hub} cannot bring back what was removed")
    if repo_id.lower() not in {one.repo_id.lower() for one in kept}:
        raise NotFoundError(f"{hub} keeps no removed {repo_id}", hint="hubctl list --removed")
    try:
        _ask(hub, "POST", "restore", repo_id, {"type": "model", "name": repo_id})
    except ConflictError as error:
        raise ConflictError(
            f"there is another {repo_id} now", hint=f"hubctl move {repo_id} {repo_id}-2, then again"
        ) from error


def _ask(hub: Hub, method: str, route: str, what: str, fields: dict[str, Any] | None = None) -> Any:
    from huggingface_hub.utils._headers import build_hf_headers
    from huggingface_hub.utils._http import get_session, hf_raise_for_status

    from hubctl.hub.session import prepare

    prepare()
    hub.need_token(f"ask for {what}")
    with translated(what, hub):
        response = get_session().request(
            method,
            f"{hub.endpoint}/api/repos/{route}",
            headers=build_hf_headers(token=hub.token or False, library_name="hubctl"),
            json=fields,
        )
        hf_raise_for_status(response)
        return response.json()
