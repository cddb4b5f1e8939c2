"""Run in a network namespace of its own, where this machine is every host of the internet: fetches
what it is told to, and prints as JSON what was sent.

All addresses are local to the loopback interface there, so that a server answers at each of them
and the kernel counts every packet, while nothing can leave.
"""

import asyncio
import io
import json
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from simpleseg_server.addresses import IPAddress, is_public
from simpleseg_server.config import Settings
from simpleseg_server.fetch import Network

from .ssrf import Vector, outcomes, vectors

# Patient, since other processes may keep this one waiting.
SETTINGS = Settings(image_urls="public", image_url_timeout_s=60, image_url_connect_timeout_s=10)
ROUTES = (
    "ip link set lo up",
    "ip route add local default dev lo",
    "ip -6 route add local default dev lo",
)


def packets() -> int:
    """Packets that were ever sent in this namespace."""
    lines = Path("/proc/net/dev").read_text().splitlines()[2:]
    return sum(int(line.partition(":")[2].split()[9]) for line in lines)


@asynccontextmanager
async def everybody() -> AsyncIterator[list[str]]:
    """A server with an image at every address, on both ports; the addresses that were asked."""
    reached: list[str] = []
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "PNG")
    answer = b"HTTP/1.1 200 OK\r\n\r\n" + buffer.getvalue()

    async def handle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.append(writer.get_extra_info("sockname")[0])
        writer.write(answer)
        writer.close()

    async with AsyncExitStack() as servers:
        for port in (80, 443):
            for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
                server = await asyncio.start_server(handle, host, port, family=family)
                await servers.enter_async_context(server)
        yield reached


async def observed(is_open: Callable[[IPAddress], bool], asked: list[Vector]) -> dict[str, Any]:
    """What the fetches came to, which addresses they reached, and how many packets they sent."""
    async with everybody() as reached:
        before = packets()
        found = await outcomes(SETTINGS, Network(is_open=is_open), asked)
        sent = packets() - before
        return {"codes": [code for _, code in found], "reached": reached, "packets": sent}


async def main() -> dict[str, Any]:
    forbidden = vectors()
    public = [Vector("http://public.test/", ("9.9.9.9",)), Vector("http://[2620:fe::fe]/")]
    return {
        "forbidden": await observed(Network().is_open, forbidden),
        "public": await observed(is_public, public),
        "unguarded": await observed(lambda _: True, forbidden),
    }


if __name__ == "__main__":
    for command in ROUTES:
        subprocess.run(command.split(), check=True)
    print(json.dumps(asyncio.run(main())))
