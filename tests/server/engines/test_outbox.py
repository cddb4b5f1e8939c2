"""What the decode thread writes reaches the queues of the loops that wait for it."""

import asyncio

from simpleseg_server.engines.base import Delta
from simpleseg_server.engines.outbox import Inbox, Outbox


def delta(text: str) -> Delta:
    return Delta(text, (), None, None)


def test_a_loop_is_woken_once_for_all_that_was_kept() -> None:
    async def run() -> list[str]:
        loop, outbox = asyncio.get_running_loop(), Outbox()
        inboxes: list[Inbox] = [asyncio.Queue() for _ in range(3)]
        woken = 0
        usual = loop.call_soon_threadsafe

        def counted(*args: object, **more: object) -> asyncio.Handle:
            nonlocal woken
            woken += 1
            return usual(*args, **more)  # type: ignore[arg-type]

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign]

        def write() -> None:
            for number, inbox in enumerate(inboxes * 2):
                outbox.put(loop, inbox, delta(str(number)))
            assert woken == 0
            outbox.send()
            outbox.send()  # of nothing
            assert woken == 1

        await asyncio.to_thread(write)
        items = [await inbox.get() for inbox in inboxes * 2]
        return [item.text for item in items if isinstance(item, Delta)]

    assert asyncio.run(run()) == ["0", "1", "2", "3", "4", "5"]


def test_a_closed_loop_holds_up_no_other() -> None:
    closed, outbox = asyncio.new_event_loop(), Outbox()
    closed.close()

    async def run() -> Delta | Exception:
        inbox: Inbox = asyncio.Queue()
        outbox.put(closed, asyncio.Queue(), delta("lost"))
        outbox.put(asyncio.get_running_loop(), inbox, delta("read"))
        await asyncio.to_thread(outbox.send)
        return await inbox.get()

    assert asyncio.run(run()) == delta("read")
