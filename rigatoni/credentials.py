"""What the driver knows and nobody is to see."""

from __future__ import annotations

from collections.abc import Iterator
from traceback import walk_tb


def without_credentials(error: BaseException) -> BaseException:
    """Cut the tracebacks of an error that passed the driver's authentication.

    They are of use to nobody who mends a URI, and tools that show local variables would show the password.
    """
    chain = list(_chain(error, set()))
    if any(_shows_credentials(each) for each in chain):
        for each in chain:
            each.__traceback__ = None
    return error


def _chain(error: BaseException | None, known: set[int]) -> Iterator[BaseException]:
    if error is not None and id(error) not in known:
        known.add(id(error))
        yield error
        yield from _chain(error.__cause__, known)
        yield from _chain(error.__context__, known)


def _shows_credentials(error: BaseException) -> bool:
    # By name, for the class is not public.
    return any(
        type(value).__name__ == "MongoCredential"
        for frame, _ in walk_tb(error.__traceback__)
        for value in frame.f_locals.values()
    )
