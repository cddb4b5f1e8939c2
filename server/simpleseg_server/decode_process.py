"""The process that forks decoders, and the decoders: what ``decode_pool.py`` starts and talks to.

It is a program of its own with one thread, so that a fork is safe and takes about a millisecond.
It has Pillow and little else: no keys in its environment, no sockets but those to the server. A
decoder takes one file after the other, with its memory limited, and for each file the CPU time,
after which the kernel ends it. All of them end with the server, however it ends.
"""

import gc
import json
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simpleseg_polygon.geometry import Box, ImageSize
from simpleseg_server.pixels import (
    FAULTS,
    FORMATS,
    EngineSize,
    PictureError,
    Reading,
    guard_pillow,
    read_picture,
)

FORK, REAP = b"fork", b"reap"
NUMBER = struct.Struct("<i")
ASKED = struct.Struct("<QBIIQIIQ4d")
"""Bytes of the file, format, stored size, the engine's largest area and fixed size (0, 0 for none),
bytes of metadata, view. The file follows."""
ANSWERED = struct.Struct("<BB?")
"""0 or 1 + the index of a fault, EXIF orientation, whether it is animated. Pixels follow a 0."""


@dataclass(frozen=True)
class Limits:
    """Of one decoder: its address space, CPU seconds for each file; and what Pillow is told."""

    memory_bytes: int
    cpu_s: float
    max_pixels: int
    max_metadata_bytes: int


def pack(reading: Reading) -> bytes:
    """All of a reading but its file."""
    return ASKED.pack(
        len(reading.data),
        FORMATS.index(reading.name),
        *reading.stored,
        reading.wanted.max_pixels,
        *(reading.wanted.input_hw or (0, 0)),
        reading.max_metadata_bytes,
        *reading.view,
    )


def unpack(head: bytes, data: bytes) -> Reading:
    """The inverse of ``pack``."""
    _, name, *rest = ASKED.unpack(head)
    height, width, max_pixels, *input_hw, max_metadata_bytes = rest[:6]
    wanted = EngineSize(max_pixels, (input_hw[0], input_hw[1]) if any(input_hw) else None)
    size = ImageSize(height, width)
    return Reading(data, FORMATS[name], size, wanted, max_metadata_bytes, Box(*rest[6:]))


def nurse(control: socket.socket, limits: Limits) -> None:
    """Fork a decoder on each channel that comes, and tell how decoders ended, until the server has
    gone; then end those that are left."""
    children: set[int] = set()
    while True:
        message, channels, *_ = socket.recv_fds(control, len(FORK) + NUMBER.size, 1)
        if message == FORK:
            answer = _fork(control, channels[0], limits)
            children.add(answer)
        elif message.startswith(REAP):
            pid = NUMBER.unpack(message[len(REAP) :])[0]
            answer = _reap(pid)
            children.discard(pid)
        else:
            break
        control.sendall(NUMBER.pack(answer))
    for pid in children - {0}:
        os.kill(pid, signal.SIGKILL)


def _fork(control: socket.socket, channel: int, limits: Limits) -> int:
    """The decoder's id; 0 where the system has no room for one."""
    try:
        pid = os.fork()
    except OSError:
        pid = 0
    else:
        if pid == 0:
            control.close()
            _decode_all(socket.socket(fileno=channel), limits)
    os.close(channel)
    return pid


def _reap(pid: int) -> int:
    """How a decoder ended, which it does now at the latest."""
    os.kill(pid, signal.SIGKILL)  # nothing to one that has ended: its id is kept until the wait
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _decode_all(channel: socket.socket, limits: Limits) -> None:
    """Never returns."""
    with suppress(OSError):  # where memory runs out the kernel is to end this process, not others
        Path("/proc/self/oom_score_adj").write_text("1000")
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        resource.setrlimit(limit, (0, 0))
    status = 1
    try:
        while (head := channel.recv(ASKED.size, socket.MSG_WAITALL)) != b"":
            _decode_one(channel, head, limits.cpu_s)
        status = 0
    finally:
        os._exit(status)


def _decode_one(channel: socket.socket, head: bytes, cpu_s: float) -> None:
    size = ASKED.unpack(head)[0]
    data = channel.recv(size, socket.MSG_WAITALL)
    if len(data) < size:
        raise EOFError
    try:
        with _limited(cpu_s):
            picture = read_picture(unpack(head, data))
    except PictureError as error:
        channel.sendall(ANSWERED.pack(1 + FAULTS.index(error.code), 1, False))
        return
    channel.sendall(ANSWERED.pack(0, picture.orientation, picture.is_animated))
    channel.sendall(picture.rgb)


@contextmanager
def _limited(cpu_s: float) -> Iterator[None]:
    """The kernel ends this process, in whatever code it is, once the block has had so much time."""
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def main(arguments: list[str]) -> None:
    """``arguments`` are the number of an open socket and the limits as JSON."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all of a service: the server decides
        signal.signal(number, signal.SIG_IGN)
    values: dict[str, Any] = json.loads(arguments[1])
    limits = Limits(**values)
    guard_pillow(limits.max_pixels, limits.max_metadata_bytes)
    gc.freeze()
    with socket.socket(fileno=int(arguments[0])) as control:
        nurse(control, limits)


if __name__ == "__main__":
    main(sys.argv[1:])
