"""The clients that must work with a registry as they are, each in an environment of its own.

`python -m tests.clients.environments` makes what is missing, in `.clients/`.
"""

from __future__ import annotations

import shutil
import subprocess
import venv
from pathlib import Path

FOLDER = Path(__file__).parent.parent.parent / ".clients"
HUGGINGFACE_HUB = ("0.30.2", "0.36.2", "1.27.0", "2.4.0")
NPM = "@huggingface/hub@2.17.5"
OLAH = "olah==0.5.4"
HELPERS = ("pytest", "httpx")
"""What the scenarios themselves import."""


def python_of(name: str) -> Path:
    """The interpreter of an environment."""
    return FOLDER / name / "bin" / "python"


def main() -> None:
    """Make every environment that is not there."""
    for version in HUGGINGFACE_HUB:
        _make(version, [f"huggingface_hub=={version}", *HELPERS])
    _make("olah", [OLAH])
    npm = shutil.which("npm")
    if npm is None:
        print(f"npm is not installed: {NPM} is left out")
    elif not (FOLDER / "npm" / "node_modules").exists():
        print(f"making {FOLDER / 'npm'}")
        (FOLDER / "npm").mkdir(parents=True, exist_ok=True)
        subprocess.run([npm, "install", "--silent", "--no-save", NPM], cwd=FOLDER / "npm", check=True)


def _make(name: str, requirements: list[str]) -> None:
    done = FOLDER / name / "installed"
    if done.exists():
        return
    print(f"making {FOLDER / name}")
    venv.create(FOLDER / name, clear=True, with_pip=True)
    subprocess.run([python_of(name), "-m", "pip", "install", "--quiet", *requirements], check=True)
    done.touch()


if __name__ == "__main__":
    main()
