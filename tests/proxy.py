"""A network of one's own between clients and a server: it breaks, freezes, is slow and far away as it is told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from pymongo.uri_parser import parse_uri

T = TypeVar("T")


class Link:
    """One connection through the proxy.

    :ivar request: what the client sent last.
    :ivar replied: how many bytes of the reply to it have passed.
    :ivar is_frozen: nothing passes any more, either way, and nobody is told.
    """

    def __init__(self, *ends: asyncio.StreamWriter) -> None:
        self.request = b""
        self.replied = 0
        self.is_frozen = False
        self._ends = ends

    @property
    def carries_events(self) -> bool:
        """Tell whether the last request was for the events of a cursor."""
        return b"getMore" in self.request

    @property
    def awaits_events(self) -> bool:
        """Tell whether the reply to a request for events has not begun."""
        return self.carries_events and not self.replied

    def requested(self, data: bytes) -> None:
        """Take note of a request, which may come in pieces."""
        self.request = data if self.replied else self.request + data
        self.replied = 0

    def close(self) -> None:
        for end in self._ends:
            end.close()

    def abort(self) -> None:
        for end in self._ends:
            end.transport.abort()


class Proxy:
    """Forward connections to a server; it lives in a thread.

    :param uri: of the server.
    :param rate: bytes a second that pass each way, all connections together; None is no limit.
    :param latency: seconds that everything takes each way.
    :ivar links: the connections that were made so far.
    :ivar cuts: how many replies were cut.
    """

    def __init__(self, uri: str, *, rate: float | None = None, latency: float = 0.0) -> None:
        ((self._host, self._server_port),) = parse_uri(uri)["nodelist"]
        self._rate = rate
        self._latency = latency
        self._cut_after: int | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self.links: list[Link] = []
        self.cuts = 0

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._run(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def uri(self) -> str:
        """The server's address through the proxy; without directConnection a driver would learn the real one."""
        return f"mongodb://127.0.0.1:{self._port}/?directConnection=true"

    def cut(self, after: int) -> None:
        """Close the connection of the next reply with events that is longer than this, after so many of its bytes."""
        self._do(lambda: setattr(self, "_cut_after", after))

    def freeze(self, only: Callable[[Link], bool] = lambda link: True, *, new_ones: bool = False) -> int:
        """Let nothing pass any more over connections that are open, tell nobody, and return how many these are.

        :param only: which of them.
        :param new_ones: let those that are made from now on wait until :meth:`thaw`.
        """
        frozen: list[Link] = []

        def freeze() -> None:
            if new_ones:
                self._passable.clear()
            for link in filter(only, self.links):
                link.is_frozen = True
                frozen.append(link)

        self._do(freeze)
        return len(frozen)

    def thaw(self) -> None:
        """Let new connections pass; those that were frozen stay so."""
        self._do(self._passable.set)

    def close_frozen(self) -> None:
        """End the connections that were frozen, as TCP's keepalive does in the end."""
        self._do(lambda: [link.close() for link in self.links if link.is_frozen])

    def _do(self, function: Callable[[], object]) -> None:
        async def do() -> None:
            function()

        self._run(do())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def _open(self) -> None:
        self._passable = asyncio.Event()
        self._passable.set()
        # One for each way.
        self._wires = (asyncio.Lock(), asyncio.Lock())
        self._server = await asyncio.start_server(self._forward, "127.0.0.1", 0)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        self._passable.set()
        for link in self.links:
            link.abort()
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))

    async def _forward(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        await self._passable.wait()
        if not self._server.is_serving():
            to_client.transport.abort()
            return
        try:
            from_server, to_server = await asyncio.open_connection(self._host, self._server_port)
        except OSError:
            to_client.close()
            return
        link = Link(to_client, to_server)
        self.links.append(link)
        to_wire, from_wire = self._wires
        await asyncio.gather(
            self._carry(from_client, to_wire, lambda data: self._requested(link, to_server, data)),
            self._carry(from_server, from_wire, lambda data: self._replied(link, to_client, data)),
        )

    async def _carry(self, source: asyncio.StreamReader, wire: asyncio.Lock, deliver: Callable[[bytes], None]) -> None:
        data = b"to begin with"
        while data:
            try:
                data = await source.read(65536 if self._rate is None else max(1, int(self._rate / 10)))
            except ConnectionError:
                data = b""
            if self._rate is not None:
                async with wire:
                    await asyncio.sleep(len(data) / self._rate)
            self._loop.call_later(self._latency, deliver, data)

    def _requested(self, link: Link, server: asyncio.StreamWriter, data: bytes) -> None:
        link.requested(data)
        self._pass_on(link, server, data)

    def _replied(self, link: Link, client: asyncio.StreamWriter, data: bytes) -> None:
        after = self._cut_after
        if after is not None and link.carries_events and link.replied + len(data) > after:
            self._pass_on(link, client, data[: max(0, after - link.replied)])
            link.close()
            self._cut_after, self.cuts = None, self.cuts + 1
        else:
            self._pass_on(link, client, data)
        link.replied += len(data)

    def _pass_on(self, link: Link, receiver: asyncio.StreamWriter, data: bytes) -> None:
        if link.is_frozen or receiver.is_closing():
            return
        if data:
            receiver.write(data)
        else:
            link.close()
