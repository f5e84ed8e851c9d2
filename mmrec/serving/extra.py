"""The libraries of the extra `serve`, which nothing else of mmrec needs."""

from __future__ import annotations

from importlib.util import find_spec

from mmrec.errors import UserError

LIBRARIES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "sqlalchemy")


def require_extra(command: str) -> None:
    """Refuses a command whose libraries are absent.

    Args:
        command: of the command line, for the message.

    Raises:
        UserError: says what to install.
    """
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        raise UserError(
            f"{command} needs {', '.join(missing)}, not installed: pip install 'mmrec[serve]'"
        )
