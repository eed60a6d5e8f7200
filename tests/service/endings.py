"""The end of made-up servers that run on a loop of asyncio's in a thread: nothing stays open."""

import asyncio

_TURNS = 4
"""Of asyncio's loop, from a connection that was taken to the first step of its handler."""


async def shut(*listeners: asyncio.Server) -> None:
    """They take no more connections. asyncio closes no connection that a server took just before its own end, nor one whose task is
    cancelled before it begins."""
    for each in (socket for listener in listeners for socket in listener.sockets):
        asyncio.get_running_loop().remove_reader(each.fileno())
    for _ in range(_TURNS):
        await asyncio.sleep(0)
    for listener in listeners:
        listener.close()


async def end(*listeners: asyncio.Server) -> None:
    """Shut them, and end whatever else runs on this loop."""
    await shut(*listeners)
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    # A transport that was closed closes its socket one turn later.
    await asyncio.sleep(0)
