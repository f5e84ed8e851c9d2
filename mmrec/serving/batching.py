"""Requests wait in a short line and are answered together, off the event loop, by one thread.

    submit ─┐                    ┌─ at most max_batch jobs ─► run(jobs), in the thread ─► results
    submit ─┼─ at most max_waiting, for at most wait_s
    submit ─┘      else 429

Nobody waits for a batch to fill: what has come while the thread was busy goes together. One thread
owns the model's state, so that nothing of it needs a lock. Whoever is answered has waited at most
wait_s and then the time of one batch; a refusal comes at once where that can be foreseen.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from mmrec.serving.faults import Fault

Job = TypeVar("Job")
Result = TypeVar("Result")
T = TypeVar("T")
_SMOOTHING = 0.2


@dataclass
class _Waiting(Generic[Job, Result]):
    job: Job
    answer: asyncio.Future[Result]
    since: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Batched:
    """A batch that is done.

    Attributes:
        size: jobs in it.
        seconds: that it took.
        waited_s: seconds that each job had waited when it began.
    """

    size: int
    seconds: float
    waited_s: Sequence[float]


class Batcher(Generic[Job, Result]):
    """A bounded line of jobs and the one thread that does them.

    Args:
        run: jobs -> a result or an error for each, in order; called in the thread.
        name: of the thread, and in messages.
        max_batch: jobs done together.
        max_waiting: jobs that wait; more are refused.
        timeout_s: seconds until whoever waits is told to come again, his batch included.
        wait_s: seconds that a job may wait for its batch; None: as long as `timeout_s`.
    """

    def __init__(
        self,
        run: Callable[[list[Job]], Sequence[Result | Exception]],
        *,
        name: str,
        max_batch: int,
        max_waiting: int,
        timeout_s: float,
        wait_s: float | None = None,
    ) -> None:
        self._run, self.name = run, name
        self._max_batch, self.max_waiting, self._timeout_s = max_batch, max_waiting, timeout_s
        self._wait_s = timeout_s if wait_s is None else wait_s
        self._line: deque[_Waiting[Job, Result]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._worker: asyncio.Task[None] | None = None
        self._batch_s = 0.05
        self.on_batch: Callable[[Batched], None] = lambda batched: None

    @property
    def depth(self) -> int:
        """Jobs that wait."""
        return len(self._line)

    @property
    def expected_wait_s(self) -> float:
        """Seconds until a job that comes now is begun, from what batches took of late."""
        return (self._works + self.depth // self._max_batch) * self._batch_s

    @property
    def _works(self) -> bool:
        return self._worker is not None and not self._worker.done()

    def refuse_if_full(self) -> None:
        """Refuses a job before anything is done for it.

        Raises:
            Fault: 429, where the line is full, or a job that joins it would wait too long.
        """
        if self.depth >= self.max_waiting:
            raise self._busy(f"{self.depth} requests wait for {self.name}, which is the most")
        if self.expected_wait_s > self._wait_s:
            raise self._waits_too_long()

    async def submit(self, job: Job) -> Result:
        """Waits for a job's result.

        Raises:
            Fault: 429, where the line is full, too slow, or the time is over.
            Exception: what the job itself raised.
        """
        self.refuse_if_full()
        waiting = _Waiting[Job, Result](job, asyncio.get_running_loop().create_future())
        self._line.append(waiting)
        if not self._works:
            self._worker = asyncio.create_task(self._work())
        try:
            return await asyncio.wait_for(waiting.answer, self._timeout_s)
        except TimeoutError:
            raise self._busy(f"{self.name} did not answer within {self._timeout_s:g} s") from None

    async def in_turn(self, work: Callable[[], T]) -> T:
        """Does something in the thread, behind what it is doing now; no limit holds for it."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        """Ends the thread once it has done what it does."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _busy(self, message: str) -> Fault:
        batches = 1 + self.depth / self._max_batch
        return Fault(429, "busy", message, retry_after_s=batches * self._batch_s)

    def _waits_too_long(self) -> Fault:
        return self._busy(f"{self.name} would begin later than in {self._wait_s:g} s")

    def _next_batch(self, now: float) -> list[_Waiting[Job, Result]]:
        """Jobs that are done now; those that have waited too long are refused on the way."""
        batch: list[_Waiting[Job, Result]] = []
        while self._line and len(batch) < self._max_batch:
            waiting = self._line.popleft()
            if waiting.answer.done():  # whoever asked has gone
                continue
            if now - waiting.since > self._wait_s:
                waiting.answer.set_exception(self._waits_too_long())
            else:
                batch.append(waiting)
        return batch

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._line:
            began = time.monotonic()
            batch = self._next_batch(began)
            if not batch:
                continue
            jobs = [each.job for each in batch]
            try:
                results: Sequence[Result | Exception] = await loop.run_in_executor(
                    self._thread, self._run, jobs
                )
            except Exception as error:  # a defect of the run: every job of the batch is told
                results = [error] * len(batch)
            seconds = time.monotonic() - began
            self._batch_s += _SMOOTHING * (seconds - self._batch_s)
            self.on_batch(Batched(len(batch), seconds, [began - each.since for each in batch]))
            for waiting, result in zip(batch, results, strict=True):
                if waiting.answer.done():
                    continue
                if isinstance(result, Exception):
                    waiting.answer.set_exception(result)
                else:
                    waiting.answer.set_result(result)
