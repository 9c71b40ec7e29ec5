"""A TCP proxy of our own: it listens in, delays, throttles, cuts, and goes half-open."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

__all__ = ["Proxy", "proxied"]

PIECE = 65_536


@dataclass
class Proxy:
    """What is done to the bytes of each connection; may be changed while they flow."""

    delay_s: tuple[float, float] = (0.0, 0.0)
    """each piece comes this much later, drawn evenly between the two; order is kept"""
    cut: int = 0
    """so many connections are cut in the middle of their next piece"""
    bytes_per_s: float = 0.0
    """0: as fast as it goes"""
    held: bool = False
    """half-open: connections stay, nothing flows"""
    heard: bytearray = field(default_factory=bytearray)
    """all bytes that flowed, both ways"""
    listen: bool = False
    cuts: int = 0
    connections: int = 0
    open: int = 0
    """directions that are carried now"""
    seed: int = 7

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry the bytes of one direction until an end breaks off."""
        self.open += 1
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)
        free_s = loop.time()

        async def deliver() -> None:
            while True:
                due_s, piece = await queue.get()
                await asyncio.sleep(max(0.0, due_s - loop.time()))
                while self.held:  # noqa: ASYNC110  # set from another thread
                    await asyncio.sleep(0.01)
                if not piece:
                    return
                if self.cut and self._random.random() < 1.0 / max(1, self.open):
                    self.cut -= 1
                    self.cuts += 1
                    writer.write(piece[: len(piece) // 2])
                    raise ConnectionResetError
                writer.write(piece)
                await writer.drain()

        async def take() -> None:
            nonlocal free_s
            due_s = 0.0
            while True:
                piece = await reader.read(PIECE)
                if self.listen:
                    self.heard += piece
                now_s = loop.time()
                free_s = max(free_s, now_s) + len(piece) / self.bytes_per_s if self.bytes_per_s else now_s
                due_s = max(due_s, free_s + self._random.uniform(*self.delay_s))
                await queue.put((due_s, piece))
                if not piece:
                    return

        jobs = [asyncio.create_task(deliver()), asyncio.create_task(take())]
        try:
            await asyncio.gather(*jobs)
        finally:
            self.open -= 1
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)


@contextmanager
def proxied(ports: dict[int, int], host: str = "127.0.0.1", **how: object) -> Iterator[Proxy]:
    """Carry connections from local ports to other ports.

    Args:
        ports: where it listens -> where it leads.
        host: where it leads.
        how: fields of the `Proxy`.
    """
    proxy = Proxy(**how)  # type: ignore[arg-type]
    loop = asyncio.new_event_loop()
    ready, ended = threading.Event(), asyncio.Event()

    async def connection(port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        both: list[asyncio.Task[None]] = []
        try:
            far_reader, far_writer = await asyncio.open_connection(host, port)
            writers.append(far_writer)
            proxy.connections += 1
            both += [
                asyncio.create_task(proxy.carry(reader, far_writer)),
                asyncio.create_task(proxy.carry(far_reader, writer)),
            ]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        except OSError:
            pass  # nobody is there yet
        finally:
            for job in both:
                job.cancel()
            for end in writers:  # before anything is waited for: the end of the proxy may break off the wait
                end.transport.abort()
            await asyncio.gather(*both, return_exceptions=True)

    async def serve() -> None:
        jobs: set[asyncio.Task[None]] = set()

        def met(port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if ended.is_set():
                writer.transport.abort()
                return
            job = asyncio.ensure_future(connection(port, reader, writer))
            jobs.add(job)
            job.add_done_callback(jobs.discard)
            # A job that is cancelled before its first turn closes nothing itself.
            job.add_done_callback(lambda _: writer.transport.abort())

        servers = [
            await asyncio.start_server(lambda r, w, p=far: met(p, r, w), "127.0.0.1", near)  # type: ignore[misc]
            for near, far in ports.items()
        ]
        ready.set()
        await ended.wait()
        # A server that is closed loses what it has just accepted, so it stops accepting a few turns before.
        for server in servers:
            for sock in server.sockets:
                loop.remove_reader(sock.fileno())
        await asyncio.sleep(0.01)
        for server in servers:
            server.close()
        for job in list(jobs):
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        await asyncio.sleep(0.05)  # what was broken off is closed in the loop's next turns

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), name="proxy")
    thread.start()
    try:
        if not ready.wait(5):
            raise TimeoutError("the proxy did not start")
        yield proxy
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(5)
        loop.close()
