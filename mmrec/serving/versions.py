"""Which model answers: the version that an administrator or the database names, once it is checked.

load beside ─ check ─ put in place between two batches ─ check again ─ record, or back to before

One lock is held from the loading to the record, and whoever follows the database looks under it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from data_prep.errors import DataError
from mmrec.errors import MmrecError
from mmrec.serving.answering import Answering, popular_items
from mmrec.serving.batching import Batcher
from mmrec.serving.beside import Beside, give_memory_back
from mmrec.serving.database import DATABASE_ERRORS, Database
from mmrec.serving.faults import Fault
from mmrec.serving.live import Live
from mmrec.serving.monitoring import Monitoring
from mmrec.serving.settings import ServiceSettings
from mmrec.serving.swap import check, load_live, version_folder

logger = logging.getLogger(__name__)
RETRY_S = 10.0


class Versions:
    """The versions of one worker.

    Args:
        settings: of the service.
        database: that names the version for every worker.
        answering: what the model is put into.
        lists: its line, between whose batches it is put there.
        beside: where it is loaded.
        keep: writes to the database, in time or not at all.
        monitoring: told of what answers.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        database: Database,
        *,
        answering: Answering,
        lists: Batcher[Any, Any],
        beside: Beside,
        keep: Callable[[Callable[[], None]], Awaitable[None]],
        monitoring: Monitoring,
    ) -> None:
        self._settings, self._database = settings, database
        self._answering, self._lists, self._beside = answering, lists, beside
        self._keep, self._monitoring = keep, monitoring
        self._changing = asyncio.Lock()
        self._tried_at = time.monotonic()
        self.refused: dict[str, str] = {}
        """Why a version does not answer, by version."""

    def load(self) -> None:
        """Puts the version in place that the database names, or the first one.

        Raises:
            MmrecError: it cannot be loaded, and nothing is known that could be listed in its place.
            DataError: the same of its data.
            DBAPIError: the database does not answer.
        """
        version = self._database.version() or self._settings.path.name
        try:
            folder = self._folder_of(version)
            self.put(self._beside.wait_for(lambda: self._load(folder, version)))
        except (MmrecError, DataError, OSError) as error:
            if not self._database.popular():
                raise
            self._refuse(version, error)
            self._monitoring.serves(None, None)

    async def change(self, version: str) -> Live:
        """Puts a version in place, if it passes its check, and keeps that every worker is to.

        Else all stays as it is.

        Raises:
            ConfigError: there is no such version.
            DBAPIError: the database does not answer.
            Fault: 409, it fails its check; 503, the database does not take it in time.
        """
        folder = self._folder_of(version)
        async with self._alone():
            return await self._swap_and_record(folder, version)

    async def follow(self, named: str | None) -> None:
        """Puts the version in place that the database names, unless it is or was refused.

        Where none answers, one is tried again now and then.

        Args:
            named: what the database said a moment ago; None: nothing, or it did not answer.
        """
        again = self._answering.live is None and time.monotonic() - self._tried_at > RETRY_S
        if not again and not self._is_new(named):
            return
        self._tried_at = time.monotonic()
        async with self._alone():
            version = self._settings.path.name
            try:
                # what was said before may be the version whose place another has taken meanwhile
                named = await asyncio.to_thread(self._database.version)
                version = named or version
                if self._answering.live is None or self._is_new(named):
                    await self._swap(self._folder_of(version), version)
            except DATABASE_ERRORS as error:  # no fault of the version: the next look tries again
                logger.warning("no version is followed: %s", type(error).__name__)
            except (Fault, MmrecError) as error:
                self._refuse(version, error)

    def put(self, live: Live | None) -> None:
        """Puts a model in place; between two batches, in the thread that owns it."""
        self._answering.live = live
        if live is None:
            self._monitoring.serves(None, None)
            return
        self._monitoring.serves(live.version, live.model_hash)
        try:
            self._database.keep_popular(popular_items(live.retriever))
        except DATABASE_ERRORS as error:  # of no use before the model fails
            logger.warning("what is popular could not be kept: %s", type(error).__name__)
        logger.info("version %s answers", live.version)

    def _is_new(self, named: str | None) -> bool:
        live = self._answering.live
        serves = None if live is None else live.version
        return named is not None and named != serves and named not in self.refused

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """Nobody else changes the model meanwhile; what the one before held is given back."""
        async with self._changing:
            try:
                yield
            finally:
                await self._beside.do(give_memory_back)

    async def _swap_and_record(self, folder: Path, version: str) -> Live:
        before = self._answering.live
        live = await self._swap(folder, version)
        try:
            await self._keep(lambda: self._database.add_version(version, live.model_hash))
        except Exception:
            if before is not None:
                await self._lists.in_turn(lambda: self.put(before))
            raise
        return live

    async def _swap(self, folder: Path, version: str) -> Live:
        """Puts a version in place that passes its check; under the lock.

        Raises:
            DBAPIError: the database does not answer.
            Fault: 409, it fails its check.
        """
        before = self._answering.live
        try:
            live = await self._beside.do(lambda: self._load(folder, version))
            await self._lists.in_turn(lambda: self.put(live))
            try:
                await self._lists.in_turn(lambda: check(live.retriever))
            except Exception:
                await self._lists.in_turn(lambda: self.put(before))
                raise
        except DATABASE_ERRORS:
            raise
        except Exception as error:  # whatever it is, the one before goes on answering
            logger.error("version %s does not answer: %s", version, error)
            raise Fault(
                409, "check_failed", f"version '{version}' does not pass: {error}"
            ) from None
        self.refused.pop(version, None)
        return live

    def _folder_of(self, version: str) -> Path:
        settings = self._settings
        if version == settings.path.name:
            return settings.path
        return version_folder(settings.models, version)

    def _load(self, folder: Path, version: str) -> Live:
        return load_live(folder, self._settings.data, version, self._database)

    def _refuse(self, version: str, error: Exception) -> None:
        self.refused[version] = " ".join(str(error).split())[:200]
        logger.error("version %s does not answer: %s", version, error)
