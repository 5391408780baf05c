"""Fetches the four npm packages the bases and samples are made from, pinned by content."""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import tarfile
from pathlib import Path

PACKAGES = {
    "emoji-datasource-google@16.0.0": "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    "emoji-datasource-twitter@16.0.0": "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    "openmoji@17.0.0": "55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68",
    "@lobehub/fluent-emoji-3d@1.1.0": "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
}


def fetch(package: str, sha256: str, data: Path) -> Path:
    """Downloads one package with npm, checks it, and unpacks it under its own name.

    Raises:
        ValueError: the tarball is not the one the bases were made from.
    """
    name, _, version = package.removeprefix("@").replace("/", "-").rpartition("@")
    tarball, folder = data / f"{name}-{version}.tgz", data / name
    if not tarball.exists():
        subprocess.run(["npm", "pack", package, "--pack-destination", str(data)], check=True)
    found = hashlib.sha256(tarball.read_bytes()).hexdigest()
    if found != sha256:
        raise ValueError(f"{tarball.name}: sha256 is {found}, expected {sha256}; delete it")
    if not folder.exists():
        with tarfile.open(tarball) as archive:
            archive.extractall(folder, members=_without_first_folder(archive), filter="data")
    return folder


def _without_first_folder(archive: tarfile.TarFile) -> list[tarfile.TarInfo]:
    members = [member for member in archive.getmembers() if "/" in member.name]
    for member in members:
        member.name = member.name.partition("/")[2]
    return members


def main() -> None:
    """Fetches everything into one folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    args = parser.parse_args()
    args.data.mkdir(parents=True, exist_ok=True)
    for package, sha256 in PACKAGES.items():
        print(fetch(package, sha256, args.data))


if __name__ == "__main__":
    main()
