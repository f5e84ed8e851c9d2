"""Starts the service with uvicorn: one worker in this process, or several beside it."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from mmrec.errors import UserError
from mmrec.serving.settings import SETTINGS_VARIABLE, ServiceSettings, is_loopback

logger = logging.getLogger(__name__)
_DRAIN_S = 20
_BACKLOG = 2048
_MAX_HEADER_BYTES = 16 * 1024


def run_service(
    settings: ServiceSettings,
    *,
    certificate: Path | None = None,
    private_key: Path | None = None,
) -> None:
    """Answers requests until it is told to end; then those that were accepted, and no more.

    Args:
        settings: of the service.
        certificate: of TLS, PEM.
        private_key: of TLS, PEM.

    Raises:
        UserError: the model, the keys or the database are at fault.
    """
    import uvicorn

    from mmrec.serving.app import build_app
    from mmrec.serving.service import Service

    if (certificate is None) != (private_key is None):
        raise UserError("--tls-certificate and --tls-key go together; give both or none")
    options: dict[str, Any] = {
        "host": settings.host,
        "port": settings.port,
        "ssl_certfile": certificate,
        "ssl_keyfile": private_key,
        "timeout_graceful_shutdown": _DRAIN_S,
        "h11_max_incomplete_event_size": _MAX_HEADER_BYTES,
        "backlog": _BACKLOG,
        "log_config": None,
        "access_log": False,
        "server_header": False,
    }
    if certificate is None and not is_loopback(settings.host):
        logger.warning("keys go over the wire in the clear: give --tls-certificate and --tls-key")
    # with several workers too: what is wrong is one line here, and not workers that die and die
    service = Service(settings)
    service.load()
    if settings.workers > 1:
        service.database.close()
        del service
        os.environ[SETTINGS_VARIABLE] = settings.model_dump_json()
        with tempfile.TemporaryDirectory(prefix="mmrec-metrics-") as folder:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
            uvicorn.run("mmrec.serving.app:from_environment", factory=True,
                        workers=settings.workers, **options)  # fmt: skip
        return
    quieten()
    logger.info("listening on %s, port %d", settings.host, settings.port)
    uvicorn.run(build_app(service), **options)


def quieten() -> None:
    """Leaves lines about single requests out of the log: what they say is in the answers."""
    logging.getLogger("mmrec.retrieval").setLevel(logging.ERROR)
