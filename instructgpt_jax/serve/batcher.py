"""Decodes the requests that wait together in one batch, in a thread."""

from __future__ import annotations

import collections
import dataclasses
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from instructgpt_jax.chat.engine import ChatSession
from instructgpt_jax.chat.row_sampler import Row, Scores
from instructgpt_jax.errors import UserError
from instructgpt_jax.serve.answer import Answer, Delta

MAX_WAITING = 4096  # answers
_SMALLEST = 16  # tokens of the smallest bucket
_PAUSE = 0.005  # seconds without a new request after which a batch begins
_LONGEST_PAUSE = 0.05  # seconds
_TOP_COUNTS = (0, 1, 5, 20)  # numbers of top log-probabilities of programs


@dataclasses.dataclass(eq=False)
class Job:
  """An answer to sample.

  Attributes:
    row: prompt, seed and sampling settings.
    max_tokens: longest answer; 0 only scores the prompt.
    answer: turns its tokens into text.
    deliver: called in the decoding thread with each `Delta`, with the `Scores`
      of the prompt, or with the exception that ended the answer.
    top_logprobs: number of most likely tokens that are returned.
    score_prompt: whether to score the prompt, before the answer.
    cancelled: whether nobody waits for the answer any more.
  """

  row: Row
  max_tokens: int
  answer: Answer
  deliver: Callable[[Delta | Scores | Exception], None]
  top_logprobs: int = 0
  score_prompt: bool = False
  cancelled: bool = False

  @property
  def shape(self) -> tuple[int, int]:
    """Returns the width of the padded prompt, and the slots of the cache."""
    width = _bucket(len(self.row.ids))
    return width, max(_bucket(width + self.max_tokens), 2 * _SMALLEST)

  @property
  def finished(self) -> bool:
    """Returns whether no more tokens are needed."""
    return self.cancelled or self.answer.finish_reason is not None


class Batcher:
  """Answers jobs in the order in which they came.

  A batch consists of the oldest job and of waiting jobs whose prompts and
  answers are padded to the same lengths. Every batch has `max_batch` rows, so
  that an answer depends on its own request only.
  """

  def __init__(self, session: ChatSession, max_batch: int):
    """Prepares decoding.

    Args:
      session: the model.
      max_batch: answers decoded together.
    """
    self._session, self._max_batch = session, max_batch
    self._waiting: collections.deque[Job] = collections.deque()
    self._changed = threading.Condition()
    self._closed = False
    self._thread = threading.Thread(
      target=self._run, name="decoding", daemon=True
    )

  def start(self) -> None:
    """Starts the thread that decodes."""
    self._thread.start()

  def close(self, timeout: float) -> bool:
    """Stops decoding; returns whether the thread has ended in time."""
    with self._changed:
      self._closed = True
      self._changed.notify()
    self._thread.join(timeout)
    return not self._thread.is_alive()

  def submit(self, jobs: Sequence[Job]) -> bool:
    """Adds jobs to those that wait; False if there is no room for them."""
    with self._changed:
      if len(self._waiting) + len(jobs) > MAX_WAITING:
        return False
      self._waiting.extend(jobs)
      self._changed.notify()
    return True

  def _run(self) -> None:
    while batch := self._next_batch():
      try:
        self._answer(batch)
      except Exception as error:
        if not isinstance(error, UserError):
          traceback.print_exc(file=sys.stderr)
        for job in batch:
          if not job.finished:
            job.deliver(error)

  def _next_batch(self) -> list[Job]:
    """Waits for jobs, and takes those that fit the oldest; [] at the end."""
    with self._changed:
      while not self._closed:
        self._changed.wait_for(lambda: self._closed or self._waiting)
        self._wait_for_more()
        batch, rest = [], []
        for job in self._waiting:
          if job.cancelled:
            continue
          fits = not batch or job.shape == batch[0].shape
          take = fits and len(batch) < self._max_batch
          (batch if take else rest).append(job)
        self._waiting = collections.deque(rest)
        if batch and not self._closed:
          return batch
    return []

  def _wait_for_more(self) -> None:
    """Waits until requests that were sent together have arrived."""
    for _ in range(round(_LONGEST_PAUSE / _PAUSE)):
      count = len(self._waiting)
      if count >= self._max_batch or self._closed:
        return
      if not self._changed.wait(_PAUSE) and count == len(self._waiting):
        return

  def _answer(self, batch: Sequence[Job]) -> None:
    width, slots = batch[0].shape
    for job in batch:
      if job.score_prompt and not job.cancelled:
        scores = self._session.sampler.score(
          job.row.ids, width=width, top_logprobs=self._top_count([job])
        )
        job.deliver(scores)
    for job in batch:
      if job.max_tokens == 0:
        job.answer.finish_reason = "length"
        job.deliver(Delta("", (), "length"))
    jobs = [job for job in batch if not job.finished]
    if jobs:
      self._decode(jobs, width, slots)

  def _decode(self, jobs: Sequence[Job], width: int, slots: int) -> None:
    for step in self._session.sampler.sample(
      [job.row for job in jobs],
      width=width,
      slots=slots,
      batch_size=self._max_batch,
      top_logprobs=self._top_count(jobs),
    ):
      for i, job in enumerate(jobs):
        if not job.finished:
          top = top_of(step, i, job.top_logprobs)
          delta = job.answer.push(int(step.tokens[i]), float(step.logp[i]), top)
          if delta.text or delta.tokens or delta.finish_reason:
            job.deliver(delta)
      if self._closed or all(job.finished for job in jobs):
        return

  def _top_count(self, jobs: Sequence[Job]) -> int:
    """Returns how many log-probabilities a program returns for these jobs."""
    needed = max(job.top_logprobs for job in jobs)
    count = next(count for count in _TOP_COUNTS if count >= needed)
    return min(count, self._session.sampler.max_top_logprobs)


def top_of(scores: Scores, i: Any, count: int) -> tuple[tuple[int, float], ...]:
  """Returns (id, log-probability) of the most likely tokens at a position."""
  ids, logp = scores.top_ids[i, :count], scores.top_logp[i, :count]
  return tuple(zip(ids.tolist(), logp.tolist(), strict=True))


def _bucket(length: int) -> int:
  """Returns the power of two that a length is padded to."""
  size = _SMALLEST
  while size < length:
    size *= 2
  return size
