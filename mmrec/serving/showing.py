"""What a worker does with a list to a user before it is sent: explores places, logs what it shows.

ranked list ─ explore ─► shown list ─ Batcher, many in a transaction ─► ShownLog
                              └─► the answer, with the request_id that events may name
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mmrec.retrieval.lists import Recommendation
from mmrec.serving.batching import Batcher
from mmrec.serving.database import DATABASE_ERRORS, Database
from mmrec.serving.explore import explore
from mmrec.serving.faults import Fault
from mmrec.serving.live import Live
from mmrec.serving.questions import Answer
from mmrec.serving.schemas import AskedWishes, RecommendRequest
from mmrec.serving.settings import ServiceSettings
from mmrec.serving.shown import ShownList, ShownLog

logger = logging.getLogger(__name__)
_FORGET_EVERY_S = 3600.0
_DAY_S = 86_400.0


class Showing:
    """The log of shown lists as one worker writes it.

    Args:
        settings: of the service.
        database: that the log lies in.
        random: draws what is explored; None: from the system's own randomness.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        database: Database,
        random: np.random.Generator | None = None,
    ) -> None:
        self.log = ShownLog(database.engine)
        self._settings = settings
        self._random = random or np.random.default_rng()
        self._line = Batcher[ShownList, None](
            self._write,
            name="shown lists",
            max_batch=256,
            max_waiting=16 * settings.max_waiting,
            timeout_s=settings.timeout_s,
        )
        self._behind = set[asyncio.Task[bool]]()
        self._forgetting: asyncio.Task[None] | None = None
        self._forgot_at = -_FORGET_EVERY_S

    def num_ranked(self, asked: RecommendRequest) -> int:
        """How many items the list of a request is chosen from: k, or more where it is explored."""
        return asked.k + (self._settings.explore_next if self._explores(asked) else 0)

    async def show(
        self, asked: RecommendRequest, answer: Answer, live: Live | None
    ) -> tuple[Answer, str | None]:
        """The answer as it is sent, and its request_id; None of a list that is not in the log.

        A list to nobody by name is not logged, nor is one while the database does not answer.

        Args:
            asked: the request.
            answer: `num_ranked` items, best first.
            live: what answers now.
        """
        found: list[Recommendation] = answer.value
        propensities: Sequence[float] = [1.0] * len(found)
        if self._explores(asked):
            # without its model a list is what is popular, and stays so
            epsilon = 0.0 if answer.model_hash is None else self._settings.explore
            found, propensities = explore(found, asked.k, epsilon, self._random)
            answer = replace(answer, value=found)
        if (
            asked.user_id is None
            or not found
            or "database" in answer.degraded
            or self._settings.log_lists == "off"
        ):
            return answer, None
        is_current = live is not None and live.model_hash == answer.model_hash
        shown = ShownList(
            uuid.uuid4().hex, asked.user_id, time.time(), answer.model_hash,
            live.version if live is not None and is_current else None, found[0].basis,
            [each.item_id for each in found], propensities,
        )  # fmt: skip
        if self._settings.log_lists == "sure":
            is_kept = await self._keep(shown)
            return answer, shown.request_id if is_kept else None
        task = asyncio.create_task(self._keep(shown))
        self._behind.add(task)
        task.add_done_callback(self._behind.discard)
        return answer, shown.request_id

    def forget_in_turn(self) -> None:
        """Begins to delete what is older than the settings keep, once an hour."""
        if time.monotonic() - self._forgot_at < _FORGET_EVERY_S:
            return
        self._forgot_at = time.monotonic()
        self._forgetting = asyncio.create_task(self._forget())

    async def close(self) -> None:
        """Writes what waits, and ends."""
        for task in (*self._behind, self._forgetting):
            if task is not None:
                await task
        await asyncio.to_thread(self._line.close)

    def _explores(self, asked: RecommendRequest) -> bool:
        """Whether places of this list may show other items than its own.

        A list that is balanced as a whole, that says something of each item, or that a query asks
        for, is left as it is.
        """
        if asked.query is not None and asked.mix < 1:
            return False
        given: AskedWishes = asked.wishes
        as_a_whole = given.diversity or given.max_per or given.num_similar or given.why
        return self._settings.explore > 0 and asked.user_id is not None and not as_a_whole

    def _write(self, lists: list[ShownList]) -> list[None]:
        self.log.add(lists)
        return [None] * len(lists)

    async def _keep(self, shown: ShownList) -> bool:
        """Whether a list is on disk; where it is not, the log says so."""
        try:
            await self._line.submit(shown)
        except (Fault, *DATABASE_ERRORS) as error:
            reason = " ".join(str(error).split())[:200]
            logger.warning("a list shown to a user is not logged: %s", reason)
            return False
        return True

    async def _forget(self) -> None:
        before = time.time() - self._settings.log_lists_days * _DAY_S
        try:
            num = await self._line.in_turn(lambda: self.log.forget(before))
        except DATABASE_ERRORS as error:  # tried again in an hour
            logger.warning("old shown lists are still there: %s", type(error).__name__)
            return
        if num:
            logger.info("%d shown lists are forgotten, as --log-lists-days says", num)
