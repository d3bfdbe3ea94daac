"""Whether a bridge's program can be started at all: asked before a node connects, lazy start or not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from worker_node.settings import ServiceSettings


def program_problem(service: ServiceSettings, environ: Mapping[str, str]) -> str | None:
    """Why `service`'s bridges cannot start on this host, and what to do about it; or None.

    `environ` is the node's own environment: its PATH counts where the service sets none.
    """
    program = service.command[0]
    directory = Path(service.directory or ".")
    if not directory.is_dir():
        return f"{str(directory)!r} is no directory: correct services.{service.name}.directory"
    for name, value in service.environment.items():
        if not name or "=" in name or "\0" in name + value:
            return f"{name!r} is no name for a variable: correct services.{service.name}.environment"
    if os.sep in program:
        path = directory / program
        if path.is_dir():
            return f"{program!r} is a directory: name a program"
        if not path.exists():
            return f"{program!r} does not exist: correct the command"
        if not os.access(path, os.X_OK):
            return f"{program!r} is not executable: chmod +x it, or name its interpreter first"
        return None
    search = service.environment.get("PATH", environ.get("PATH", os.defpath))
    if shutil.which(program, path=search) is None:
        return f"{program!r} is not found on PATH: install it, or give its full path"
    return None
