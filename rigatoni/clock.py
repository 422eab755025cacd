"""What time it is for the server, as its replies tell it: how far behind a stream is has to be said in that time."""

from __future__ import annotations

from time import monotonic

from bson import Timestamp


class ServerClock:
    """Go on from the time that the server told last; exact to about a second, as cluster times are.

    :param now: the server's time at this moment; None while nobody has asked for it.
    :param patience: seconds after which a server that says nothing is late.
    :ivar operation_time: the time of the server's latest operation, as the last reply had it.
    """

    def __init__(self, now: Timestamp | None, patience: float) -> None:
        self._time = None if now is None else float(now.time)
        self._since = self._heard = monotonic()
        self._patience = patience
        self.operation_time: Timestamp | None = None

    def hear(self, operation_time: Timestamp | None) -> None:
        """Take note of a reply."""
        before, now = self.operation_time, self.now()
        # The latest operation of a server with nothing to do may be long ago; but one between two replies is of now.
        is_new = before is not None and operation_time != before and not self.is_late
        if operation_time is not None and (now is None or operation_time.time > now or is_new):
            self._time, self._since = float(operation_time.time), monotonic()
        self.operation_time, self._heard = operation_time, monotonic()

    def now(self) -> float | None:
        """Return the server's time in seconds since the epoch, None while it is unknown."""
        return None if self._time is None else self._time + monotonic() - self._since

    @property
    def silence(self) -> float:
        """Say how long ago the last reply was, in seconds."""
        return monotonic() - self._heard

    @property
    def is_late(self) -> bool:
        """Tell whether a reply, empty or not, should have come by now."""
        return self.silence >= self._patience
