"""The only file that knows whether the process is patched by gevent.

Patched, a watcher is a few greenlets of the hub that started it, and a MongoDB call is a greenlet of its own.
Unpatched, the watcher lives in one native thread with a hub of its own, because the main hub stands still while the
program sits in ``time.sleep`` or ``serve_forever``; a MongoDB call is then a native thread too.
Both ways a call can be *given up*: it ends by itself and its result is thrown away. It is never killed, because a
greenlet killed inside pymongo can leave a lock held.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Generic, TypeVar

import gevent
from gevent import monkey
from gevent._hub_local import get_hub_if_exists
from gevent.event import Event

from .credentials import without_credentials
from .errors import StreamConnectionError
from .forks import Haltable, inert_after_fork

T = TypeVar("T")

#: The identity of a native thread, also where monkey patching makes ``threading.get_ident`` tell greenlets apart.
native_ident: Callable[[], int] = monkey.get_original("_thread", "get_ident")

_native_lock: Callable[[], Any] = monkey.get_original("_thread", "allocate_lock")

#: Seconds after which a hub is woken in which somebody waits.
LONG = 3600.0
#: The same in an unpatched program's main thread. A signal that comes just as its hub falls asleep does not wake it,
#: and nothing else does: the watcher has a hub of its own.
WAKING = 0.5


class GivenUp(Exception):
    """Raised inside when a wait ends because the watcher or the listener is told to stop; no caller ever sees it."""


def is_patched() -> bool:
    """Tell whether sockets of this process are gevent's."""
    return bool(monkey.is_module_patched("socket"))


def _look_round() -> None:
    """Do nothing: that it is called makes Python call the handlers of signals that have come."""


class _Waiter:
    """One greenlet that waits, in whichever hub; woken from any native thread."""

    __slots__ = ("_event", "_ident", "_loop")

    def __init__(self) -> None:
        self._event = Event()
        self._ident = native_ident()
        self._loop = gevent.get_hub().loop

    def wait(self, timeout: float | None) -> None:
        is_lonely = self._ident == threading.main_thread().ident and not is_patched()
        # Without a timer a hub that has nothing else to wait for thinks that nobody can ever wake it.
        pause = WAKING if is_lonely else LONG
        timer = self._loop.timer(pause, pause)
        try:
            timer.start(_look_round)
            self._event.wait(timeout)
        finally:
            timer.close()

    def wake(self) -> None:
        if native_ident() == self._ident:
            self._event.set()
        else:
            try:
                self._loop.run_callback_threadsafe(self._event.set)
            except ValueError:
                # Its hub is destroyed, such as that of a watcher whose handlers hang, and nobody waits there any more.
                pass


class _LoneWaiter:
    """A native thread without a hub that waits: one made for it would outlive it, and keep two file descriptors."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = _native_lock()
        self._lock.acquire()

    def wait(self, timeout: float | None) -> None:
        self._lock.acquire(timeout=-1 if timeout is None else min(max(timeout, 0), threading.TIMEOUT_MAX))

    def wake(self) -> None:
        try:
            self._lock.release()
        except RuntimeError:
            # Somebody else has woken it.
            pass


def _waiter() -> _Waiter | _LoneWaiter:
    # In the main thread a signal must be able to end the wait, and its hub lives as long as the program.
    is_lone = get_hub_if_exists() is None and native_ident() != threading.main_thread().ident
    return _LoneWaiter() if is_lone else _Waiter()


class Flag:
    """An event that greenlets of any hub and native thread can set and wait for; gevent's own serves one hub only."""

    __slots__ = ("_set", "_waiters")

    def __init__(self) -> None:
        self._set = False
        self._waiters: set[_Waiter | _LoneWaiter] = set()

    def is_set(self) -> bool:
        """Tell whether the flag is set."""
        return self._set

    def set(self) -> None:
        """Set the flag and wake all who wait for it."""
        self._set = True
        # The woken take themselves out while this loop runs. Not a tuple, during whose making Python 3.10 and 3.11 may
        # collect garbage, and another thread come and go.
        for waiter in self._waiters.copy():
            waiter.wake()

    def clear(self) -> None:
        """Take the flag back; who was woken stays awake."""
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the flag is set; False after `timeout` seconds."""
        return wait_for_any((self,), timeout)


def wait_for_any(flags: Iterable[Flag], timeout: float | None = None) -> bool:
    """Wait cooperatively until one of the flags is set; False after `timeout` seconds."""
    flags = tuple(flags)
    if any(flag._set for flag in flags):
        return True
    waiter = _waiter()
    try:
        for flag in flags:
            flag._waiters.add(waiter)
        # Asked once more, because another thread may have set one before it knew of the waiter.
        if not any(flag._set for flag in flags):
            waiter.wait(timeout)
    finally:
        for flag in flags:
            flag._waiters.discard(waiter)
    return any(flag._set for flag in flags)


def pause(seconds: float) -> None:
    """Wait cooperatively; a native thread without a hub gets none for it."""
    Flag().wait(seconds)


def let_others_run() -> None:
    """Let the hub go round once: who is ready runs, and the system is asked for sockets and timers.

    A ``gevent.sleep(0)`` comes back within the same round, so that many of them in a row leave all sockets and timers
    waiting. https://www.gevent.org/loop_impls.html
    """
    hub = gevent.get_hub()
    round_about = hub.loop.timer(0)
    try:
        hub.wait(round_about)
    finally:
        round_about.close()
    # Behind all that was ready in this round: of its timers the latest is called first, the next save's after it.
    gevent.sleep(0)


class Call(Generic[T]):
    """One blocking call under way; :attr:`done` is set when it has ended."""

    def __init__(self, function: Callable[[], T]) -> None:
        self.done = Flag()
        self._function = function
        self._value: T
        self._error: BaseException | None = None

    def __call__(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:
            return self.fail(without_credentials(error))
        self.done.set()
        return None

    def fail(self, error: BaseException) -> None:
        """End the call with an error, in place of making it."""
        self._error = error
        self.done.set()

    def result(self) -> T:
        """Return what the call returned, or raise what it raised."""
        if self._error is not None:
            raise self._error
        return self._value


class Calls:
    """Blocking MongoDB calls that can be given up; from any thread.

    Unpatched, each call is a thread of its own: one that was given up on a frozen server takes nobody's place, and no
    hub needs to outlive it. Beside a call's way over the network a thread costs little.

    A forked child must not go on with a call: it would take the reply from the parent's socket. Its threads are not
    there, its greenlets are halted.
    """

    def __init__(self) -> None:
        self._is_patched = is_patched()
        self._is_over = False
        self._under_way: set[Haltable] = set()
        inert_after_fork(self)

    def forked(self) -> None:
        """End what is under way, and make no call any more: called in a forked child."""
        self._is_over = True
        for greenlet in self._under_way:
            greenlet.halt()

    def start(self, function: Callable[[], T]) -> Call[T]:
        """Start a call and return at once."""
        call = Call(function)
        if self._is_over:
            call.fail(GivenUp("a child makes no call of its parent's"))
        elif self._is_patched:
            greenlet = Haltable.spawn(call)
            self._under_way.add(greenlet)
            greenlet.rawlink(partial(self._ended, call))
        else:
            try:
                threading.Thread(target=call, name="rigatoni call", daemon=True).start()
            except RuntimeError as error:
                # There are too many threads just now; or the program ends: Python 3.12.0 and 3.12.1 start none then.
                call.fail(StreamConnectionError(f"no thread could be started for a call: {error}"))
        return call

    def are_made_here(self) -> bool:
        """Tell whether the caller is a signal handler amidst the driver's work, whose locks it must not hold."""
        return gevent.getcurrent() in self._under_way or threading.current_thread().name.startswith("pymongo_")

    def _ended(self, call: Call[Any], greenlet: Haltable) -> None:
        self._under_way.discard(greenlet)
        if not call.done.is_set():
            # Somebody killed it before it began.
            call.fail(gevent.GreenletExit())

    def run(self, function: Callable[[], T], stop: Flag) -> T:
        """Wait for a call.

        :param stop: gives the call up when set; one that is set already keeps it from being made.
        :raises GivenUp: when the call was given up.
        """
        if stop.is_set():
            # It would fail at once on a client that was closed because of the stop, which is no error of the watcher.
            raise GivenUp("stopped before the call")
        call = self.start(function)
        wait_for_any((call.done, stop))
        if not call.done.is_set():
            raise GivenUp("the call was given up")
        return call.result()


def live(function: Callable[[], None], name: str, over: Callable[[], None]) -> None:
    """Give a watcher its place: a greenlet of this hub, or unpatched a native thread with a hub of its own.

    The thread is a daemon: a program that ends without ``stop()`` ends like a crash, and nothing is lost.

    :param over: called at the very end, when the thread has no hub any more: a program that ends while one is being
        destroyed is killed by SIGSEGV.
    """
    is_thread = not is_patched()
    # Taken out when done: gevent keeps for ever the frames in which a hub was destroyed, and what they refer to.
    parts = [over, function]

    def run() -> None:
        try:
            parts.pop()()
        finally:
            if is_thread:
                gevent.get_hub().destroy(destroy_loop=True)
            parts.pop()()

    if is_thread:
        threading.Thread(target=run, name=name, daemon=True).start()
    else:
        Haltable.spawn(run)
