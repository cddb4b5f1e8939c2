"""Decoding in other processes, which can be killed: the server's side of ``decode_process.py``."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from simpleseg_server.decode_process import (
    ANSWERED,
    FORK,
    NUMBER,
    REAP,
    Limits,
    pack,
)
from simpleseg_server.pixels import FAULTS, Fault, Picture, PictureError, Reading

Death = Literal["timeout", "crash"]
WALL_FACTOR = 5
"""How much longer than its CPU time a decoder may take before it counts as hung."""
_PATIENCE_S = 10.0
"""For the process that forks: to start, to fork, to end."""
_MODULE = "simpleseg_server.decode_process"
_RETURNED_BYTES = 2**20
"""Pieces of memory from this size on are not kept for later (glibc; others do not look)."""


class NoDecoderError(Exception):
    """The system has no room for another process at the moment."""


@dataclass(frozen=True)
class _Decoder:
    pid: int
    channel: socket.socket

    def has_ended(self) -> bool:
        """Asked of one without work, which has nothing to say but that."""
        return _speaks(self.channel)


class _Nursery:
    """The process that forks decoders. Raises OSError, from any method, once it has gone. For one
    thread at a time."""

    def __init__(self, limits: Limits) -> None:
        self._control, theirs = socket.socketpair()
        self._control.settimeout(_PATIENCE_S)
        with theirs:
            number = theirs.fileno()
            self._process = subprocess.Popen(
                # Without site: it runs what packages want to be run at every start.
                [
                    sys.executable,
                    "-S",
                    "-P",
                    "-m",
                    _MODULE,
                    str(number),
                    json.dumps(asdict(limits)),
                ],
                pass_fds=[number],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=_environment(),
                start_new_session=True,
            )

    def has_ended(self) -> bool:
        """Asked when it has nothing to answer."""
        return _speaks(self._control)

    def fork(self) -> _Decoder:
        """Raises NoDecoderError."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                socket.send_fds(self._control, [FORK], [theirs.fileno()])
                pid = self._answer()
            if pid == 0:
                raise NoDecoderError
        except BaseException:
            ours.close()
            raise
        return _Decoder(pid, ours)

    def reap(self, decoder: _Decoder) -> int:
        """The exit status of a decoder, which is killed if it has not ended; less than 0 is minus a
        signal."""
        decoder.channel.close()
        self._control.sendall(REAP + NUMBER.pack(decoder.pid))
        return self._answer()

    def _answer(self) -> int:
        data = self._control.recv(NUMBER.size, socket.MSG_WAITALL)
        if len(data) < NUMBER.size:
            raise ConnectionResetError
        return int(NUMBER.unpack(data)[0])

    def close(self) -> None:
        self._control.close()  # at which it ends
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class DecodePool:
    """``size`` processes that decode, each one file at a time; one that ends is replaced at once.

    For threads, as many as processes: each ``read`` has a process to itself. ``on_death`` is told
    of every process that a file has ended.
    """

    def __init__(
        self, limits: Limits, size: int, on_death: Callable[[Death], None] = lambda _: None
    ) -> None:
        self._limits = limits
        self._size = size
        self._on_death = on_death
        self._lock = threading.Lock()
        self._nursery: _Nursery | None = None
        self._idle: list[_Decoder] = []
        self._living = 0

    def start(self) -> None:
        """Start the process that others are forked from, without waiting for it; else the first
        ``read`` does. Idempotent."""
        with self._lock:
            self._started()

    def _started(self) -> _Nursery:
        if self._nursery is not None and self._nursery.has_ended():
            self._forget(self._nursery)
        if self._nursery is None:
            self._nursery = _Nursery(self._limits)
        return self._nursery

    def close(self) -> None:
        """End all processes; call it when no ``read`` is under way."""
        with self._lock:
            self._forget(self._nursery)

    def _forget(self, nursery: _Nursery | None) -> None:
        if nursery is None or nursery is not self._nursery:
            return
        for decoder in self._idle:
            decoder.channel.close()
        self._idle.clear()
        self._living = 0
        self._nursery = None
        nursery.close()

    def read(self, reading: Reading) -> Picture:
        """``read_picture`` in another process. Raises PictureError, also image_decode_timeout;
        NoDecoderError."""
        nursery, decoder = self._take()
        try:
            picture = _ask(decoder.channel, reading, self._limits.cpu_s * WALL_FACTOR)
        except PictureError:
            self._give_back(nursery, decoder)
            raise
        except OSError as error:
            raise PictureError(self._end(nursery, decoder, error)) from None
        self._give_back(nursery, decoder)
        return picture

    def _take(self) -> tuple[_Nursery, _Decoder]:
        """A decoder that has nothing to do and is alive."""
        with self._lock:
            for _ in range(2):
                nursery = self._started()
                try:
                    return nursery, self._living_one(nursery)
                except OSError:  # it was killed, and all decoders with it
                    self._forget(nursery)
        raise NoDecoderError

    def _living_one(self, nursery: _Nursery) -> _Decoder:
        while True:
            self._fill(nursery)
            decoder = self._idle.pop()
            if not decoder.has_ended():
                return decoder
            nursery.reap(decoder)
            self._living -= 1

    def _fill(self, nursery: _Nursery) -> None:
        while self._living < self._size:
            self._idle.append(nursery.fork())
            self._living += 1

    def _give_back(self, nursery: _Nursery, decoder: _Decoder) -> None:
        with self._lock:
            if nursery is self._nursery:
                self._idle.append(decoder)
            else:
                decoder.channel.close()

    def _end(self, nursery: _Nursery, decoder: _Decoder, error: OSError) -> Fault:
        """What to say of a file that its decoder did not survive."""
        status = -signal.SIGKILL
        with self._lock, suppress(OSError, NoDecoderError):  # then the next ``read`` starts anew
            status = nursery.reap(decoder)
            if nursery is self._nursery:
                self._living -= 1
                self._fill(nursery)
        is_late = status == -signal.SIGPROF or isinstance(error, TimeoutError)
        self._on_death("timeout" if is_late else "crash")
        return "image_decode_timeout" if is_late else "image_decode_failed"


def _speaks(channel: socket.socket) -> bool:
    """Whether it has anything to read, its end included."""
    return bool(select.select([channel], [], [], 0)[0])


def _environment() -> dict[str, str]:
    """Of the server's only where libraries are: the rest holds keys. And that the memory of a large
    picture goes back to the system when it has been read."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    path = os.pathsep.join(filter(None, sys.path))
    return {"PYTHONPATH": path, "MALLOC_MMAP_THRESHOLD_": str(_RETURNED_BYTES), **kept}


def _ask(channel: socket.socket, reading: Reading, timeout_s: float) -> Picture:
    """Raises PictureError; OSError where there is no answer, or none that can be true."""
    channel.settimeout(timeout_s)
    channel.sendall(pack(reading))
    channel.sendall(reading.data)
    head = bytearray(ANSWERED.size)
    _receive(channel, memoryview(head))
    fault, orientation, is_animated = ANSWERED.unpack(head)
    if fault > len(FAULTS) or not 1 <= orientation <= 8:
        raise ConnectionAbortedError
    if fault:
        raise PictureError(FAULTS[fault - 1])
    target = reading.layout(orientation).target
    pixels = np.empty((target.height * target.width * 3), np.uint8)
    _receive(channel, pixels.data)
    return Picture(pixels.data, orientation, is_animated)


def _receive(channel: socket.socket, into: memoryview) -> None:
    while len(into):
        count = channel.recv_into(into)
        if count == 0:
            raise ConnectionResetError
        into = into[count:]
