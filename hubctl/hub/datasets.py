"""Dataset repositories of a registry: brought whole, to be read from the disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hubctl.hub.client import Hub
from hubctl.hub.faults import translated
from hubctl.refs import AdapterRef


def download_dataset(hub: Hub, ref: AdapterRef, folder: Path, *, include: Sequence[str] = ()) -> str:
    """Bring the files of a dataset repository (those that match `include`, if any) into `folder`; its commit.

    Raises:
        NotFoundError: no such dataset or revision, or one that this token may not see.
        UnavailableError: the registry cannot be reached.
    """
    with translated(f"dataset {ref}", hub):
        info = hub.api().dataset_info(ref.repo_id, revision=ref.revision)
        commit = str(info.sha)
        hub.api().snapshot_download(
            ref.repo_id,
            repo_type="dataset",
            revision=commit,
            local_dir=folder,
            allow_patterns=list(include) or None,
        )
    return commit
