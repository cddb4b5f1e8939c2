"""The thread that owns the model: it takes requests that wait and steps those under way."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

import torch

from simpleseg_server.engines.base import EngineDeadError
from simpleseg_server.engines.decoding import Decoder, Job

# Parameters below which the threads of one step wait for each other longer than they compute: with
# two of them the demo model took 30 to 50 times as long on a machine that had other work.
_SMALL_MODEL = 100_000_000


class DecodeWorker:
    """A thread around a decoder. All methods may be called from any thread and do not block.

    Between two steps at most one request joins whose image is new, so that reading a long prompt
    holds the others up once, not many times; those on an image of which a prompt was read join too.
    ``started`` holds the decoder once it is loaded; ``stopped`` is done when the thread has ended.
    """

    def __init__(
        self,
        load: Callable[[], Decoder],
        send: Callable[[], None],
        *,
        max_batch: int,
        num_threads: int | None,
    ) -> None:
        """``send`` is called in the thread after each step, so that what was delivered to the jobs
        can go on in one piece. ``num_threads`` None leaves torch its own choice, but gives a small
        model one thread."""
        self.started: Future[Decoder] = Future()
        self.stopped: Future[None] = Future()
        self._load = load
        self._send = send
        self._max_batch = max_batch
        self._num_threads = num_threads
        self._waiting: deque[Job] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._death: BaseException | None = None
        # A daemon, so that a process that never closes its engine can end.
        self._thread = threading.Thread(target=self._run, name="simpleseg-decode", daemon=True)
        self._thread.start()

    def check_alive(self) -> None:
        """Raise EngineDeadError where no request can be answered any more."""
        if self._death is not None or self._closing:
            raise EngineDeadError("the decode thread has stopped") from self._death

    def submit(self, job: Job) -> None:
        """Queue a request. Raises EngineDeadError after ``close`` or the thread's death."""
        with self._wake:
            self.check_alive()
            self._waiting.append(job)
            self._wake.notify()

    def cancel(self, job: Job) -> None:
        """Free what the request holds, at the latest after the step under way."""
        with self._wake:
            job.cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)

    def close(self) -> None:
        """Ask the thread to end after the step under way; ``stopped`` tells when it has."""
        with self._wake:
            self._closing = True
            self._wake.notify()

    def _run(self) -> None:
        decoder: Decoder | None = None
        try:
            if self._num_threads is not None:
                torch.set_num_threads(self._num_threads)  # OpenMP keeps it per calling thread
            with torch.inference_mode():
                decoder = self._load()
                if self._num_threads is None and decoder.checkpoint.parameters < _SMALL_MODEL:
                    torch.set_num_threads(1)
                self.started.set_result(decoder)
                while self._turn(decoder):
                    pass
        except BaseException as error:  # whatever ends this thread ends the engine
            self._death = error
            if not self.started.done():
                self.started.set_exception(error)
        finally:
            self._fail_all(decoder)
            self.stopped.set_result(None)

    def _turn(self, decoder: Decoder) -> bool:
        """Wait for work, let requests join, make one step; False once closing."""
        with self._wake:
            self._wake.wait_for(lambda: self._closing or self._waiting or decoder.running)
            if self._closing:
                return False
        job = self._next(decoder)
        while job is not None:
            decoder.admit(job)
            self._send()  # the first token does not wait for the step
            job = self._next(decoder, is_further=True)
        decoder.step()
        self._send()
        return True

    def _next(self, decoder: Decoder, *, is_further: bool = False) -> Job | None:
        """The request that may join now; a further one only on an image that is known."""
        with self._wake:
            if not self._waiting or decoder.running >= self._max_batch:
                return None
            key = self._waiting[0].request.image_key
            if is_further and not decoder.images.holds_prompt(key):
                return None
            return self._waiting.popleft()

    def _fail_all(self, decoder: Decoder | None) -> None:
        error = EngineDeadError("the engine has stopped")
        error.__cause__ = self._death
        with self._wake:
            self._closing = True
            waiting = list(self._waiting)
            self._waiting.clear()
        for job in waiting:
            job.deliver(error)
        if decoder is not None:
            decoder.fail_all(error)
        self._send()
