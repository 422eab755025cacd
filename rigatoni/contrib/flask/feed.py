"""The live part of the page, as server-sent events.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

#: Seconds between two messages: status rows are written once a second.
INTERVAL = 1.0
#: Seconds a stream lives; the browser then comes again. A graceful end of a process waits for its streams.
LIFE = 10.0
#: Seconds after which a browser comes again that got one message only.
POLL = 2.0


class Feed:
    """Make streams, of which at most one stays open at a time.

    A stream that stays open holds a thread in most servers. So one browser gets such a stream, and all others, and
    every browser where the server answers one request at a time, get one message and come again after two seconds: open
    pages cost a process one thread at most. Browsers do both by themselves.
    """

    def __init__(self) -> None:
        self._is_taken = threading.Lock()

    def messages(self, render: Callable[[], str], may_stay: bool) -> Iterator[str]:
        """Give the text of one stream, message by message.

        :param render: makes what one message says.
        :param may_stay: whether the server can answer other requests meanwhile.
        """
        stays = may_stay and self._is_taken.acquire(blocking=False)
        try:
            begin = time.monotonic()
            yield f"retry: {1000 * (INTERVAL if stays else POLL):.0f}\n{_message(render())}"
            while stays and time.monotonic() < begin + LIFE:
                time.sleep(INTERVAL)
                yield _message(render())
        finally:
            if stays:
                self._is_taken.release()


def _message(text: str) -> str:
    return "".join(f"data: {line}\n" for line in text.split("\n")) + "\n"
