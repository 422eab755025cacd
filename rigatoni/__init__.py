"""MongoDB change streams as Python decorators: gevent-native, resumable, at least once.

``import rigatoni`` alone imports neither pymongo nor gevent: each public name is imported when it is first asked for
(:pep:`562`), so that a command line or a pytest plugin can still patch the process first.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "Watcher": "watcher",
    "ChangeEvent": "events",
    "AckableEvent": "events",
    "UpdateDescription": "events",
    "DeadLetter": "events",
    "ChangeStreamConfig": "config",
    "RetryPolicy": "config",
    "ChangeStreamListener": "listener",
    "Hooks": "hooks",
    "TokenStore": "stores",
    "SQLiteStore": "stores.sqlite",
    "MemoryStore": "stores.memory",
    "Position": "position",
    "StreamError": "errors",
    "ConfigurationError": "errors",
    "StreamConnectionError": "errors",
    "MaxReconnectAttemptsExceededError": "errors",
    "InvalidResumeTokenError": "errors",
    "StreamInvalidatedError": "errors",
    "ConversionError": "errors",
    "ResumeTokenPersistenceError": "errors",
    "HandlerError": "errors",
}

__all__ = [*_HOMES, "__version__"]

if TYPE_CHECKING:
    from .config import ChangeStreamConfig as ChangeStreamConfig
    from .config import RetryPolicy as RetryPolicy
    from .errors import ConfigurationError as ConfigurationError
    from .errors import ConversionError as ConversionError
    from .errors import HandlerError as HandlerError
    from .errors import InvalidResumeTokenError as InvalidResumeTokenError
    from .errors import MaxReconnectAttemptsExceededError as MaxReconnectAttemptsExceededError
    from .errors import ResumeTokenPersistenceError as ResumeTokenPersistenceError
    from .errors import StreamConnectionError as StreamConnectionError
    from .errors import StreamError as StreamError
    from .errors import StreamInvalidatedError as StreamInvalidatedError
    from .events import AckableEvent as AckableEvent
    from .events import ChangeEvent as ChangeEvent
    from .events import DeadLetter as DeadLetter
    from .events import UpdateDescription as UpdateDescription
    from .hooks import Hooks as Hooks
    from .listener import ChangeStreamListener as ChangeStreamListener
    from .position import Position as Position
    from .stores import TokenStore as TokenStore
    from .stores.memory import MemoryStore as MemoryStore
    from .stores.sqlite import SQLiteStore as SQLiteStore
    from .watcher import Watcher as Watcher

else:

    def __getattr__(name: str) -> object:
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{home}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
