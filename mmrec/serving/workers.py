"""The start of one of several workers, which may come in the place of one that died.

The parent (uvicorn) starts a worker again whenever it ends, but for status 3, a defect of the
start, upon which it ends itself with all the others. A database that is away is no defect.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from prometheus_client.multiprocess import mark_process_dead

from mmrec.serving.monitoring import SHARED_FOLDER
from mmrec.serving.service import DatabaseAway, Service

logger = logging.getLogger(__name__)
_LOOK_S = 1.0
_WAIT_S = 10.0


def load_when_there(service: Service, within_s: float = _WAIT_S) -> None:
    """Loads a service as soon as its database is there; no request comes here before.

    Not without end, since whoever waits does not listen to SIGTERM.

    Raises:
        SystemExit: it is not there in time; the status is one upon which the parent starts anew.
        MmrecError: the model cannot be loaded.
        DataError: the same of its data.
    """
    until = time.monotonic() + within_s
    while True:
        try:
            return service.load()
        except DatabaseAway as error:
            if time.monotonic() >= until:
                logger.error("%s; the worker is started again", error)
                raise SystemExit(1) from None
            time.sleep(_LOOK_S)


def forget_the_dead() -> None:
    """Takes what dead workers said of their state out of the metrics; what they counted stays."""
    folder = os.environ.get(SHARED_FOLDER)
    if not folder:
        return
    for file in Path(folder).glob("gauge_live*_*.db"):
        pid = file.stem.rpartition("_")[2]
        if pid.isdecimal() and not _lives(int(pid)):
            mark_process_dead(int(pid), folder)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
