"""The queue of ``hpedge serve`` by itself; test_serve_limits.py has it behind the server."""

import asyncio
import threading

import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")

from hpdval_edge.serve.batching import BatchQueue


class Item:
    """As pictures are, none that can be compared."""

    def __eq__(self, other):
        raise AssertionError("compared")


def test_items_that_nobody_waits_for_any_more_are_let_go():
    """A call of the engine may last. Planted mistake: what ran out of time meanwhile stays in memory until then."""
    reached, through = threading.Event(), threading.Event()

    def run(items):
        reached.set()
        assert through.wait(60)
        return items

    async def wait() -> int:
        queue = BatchQueue(run, max_batch=1, max_wait=0, max_queue=9)
        queue.start()
        with queue.admit(4):
            first = asyncio.ensure_future(queue.submit(Item()))
            while not reached.is_set():
                await asyncio.sleep(0)
            late = [asyncio.ensure_future(queue.submit(Item())) for _ in range(3)]
            await asyncio.sleep(0)
            for one in late[::-1]:
                one.cancel()
            await asyncio.wait(late)
            left = len(queue._waiting)
            through.set()
            await first
        await queue.stop()
        return left

    assert asyncio.run(wait()) == 0
