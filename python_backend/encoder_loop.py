"""`EncoderLoop`: the thread that owns a vision encoder and batches the pictures that wait."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread

import numpy as np

from python_backend.vision_encoder import EncoderImage, VisionEncoder

OnDone = Callable[[np.ndarray | Exception], None]


@dataclass(frozen=True, slots=True)
class _Job:
    images: Sequence[EncoderImage]
    on_done: OnDone


class EncoderLoop:
    """Encodes until `close`. All requests that wait go through the encoder together.

    Args:
        encoder: owned by this object from now on.
    """

    def __init__(self, encoder: VisionEncoder) -> None:
        self._encoder = encoder
        self._inbox: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="encoder", daemon=True)
        self._thread.start()

    def submit(self, images: Sequence[EncoderImage], on_done: OnDone) -> None:
        """Hand in the pictures of one request.

        Args:
            images: in prompt order; may be empty.
            on_done: called from the encoder's thread with the request's image_embeds, or the error.
        """
        self._inbox.put(_Job(images, on_done))

    def close(self, timeout_s: float | None = None) -> None:
        """Finish what was handed in, then free the encoder. Safe to call twice."""
        self._inbox.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        is_open = True
        while is_open:
            jobs, is_open = self._take_jobs()
            self._encode(jobs)
        self._encoder.close()

    def _take_jobs(self) -> tuple[list[_Job], bool]:
        jobs: list[_Job] = []
        message = self._inbox.get()
        while message is not None:
            jobs.append(message)
            try:
                message = self._inbox.get(block=False)
            except Empty:
                return jobs, True
        return jobs, False

    def _encode(self, jobs: list[_Job]) -> None:
        try:
            embeds = self._encoder.encode([image for job in jobs for image in job.images])
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].on_done(error)
                return
            for job in jobs:  # one bad picture must not fail the others
                self._encode([job])
            return
        rest = iter(embeds)
        for job in jobs:
            job.on_done(self._encoder.join([next(rest) for _ in job.images]))
