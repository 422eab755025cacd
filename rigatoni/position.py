"""A place in a change stream, and which of the stored places a stream starts from.

A *scope* is what a stream was declared to watch: ``""`` the deployment, ``"shop"`` a database, ``"shop.orders"`` a
collection. A stored row is a scope with its position; it says: *of every namespace for which no narrower scope is
stored, all up to here is done*. A namespace is governed by the narrowest stored scope that contains it, so the rows
together are one position for each namespace that there is or ever will be. Runs may declare other scopes than the runs
before them: whoever watches a namespace now takes over the row that governs it.

Nothing here touches a server or a file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bson import Timestamp

# What ``_data`` begins with: 82, seconds, increment, version (measured with server 6.0; ``resume_token.cpp`` there).
_DATA = re.compile("82[0-9A-Fa-f]{20,}")
_SECONDS = slice(2, 10)
_INCREMENT = slice(10, 18)
_VERSION = slice(18, 22)


def time_of(token: Mapping[str, Any]) -> Timestamp:
    """Read the cluster time from a resume token.

    :param token: the whole token of an event or of a reply (postBatchResumeToken).
    :raises ValueError: when it is no resume token; the text does not hold it, because a token holds the document's
        ``_id``.

    https://www.mongodb.com/docs/manual/changeStreams/#resume-tokens
    """
    data = token.get("_data") if isinstance(token, Mapping) else None
    if not isinstance(data, str) or _DATA.fullmatch(data) is None:
        raise ValueError(
            "not a resume token: its _data must be a string of hexadecimal digits, 82 and a cluster time first; "
            f"this one is a {type(token).__name__} with _data of type {type(data).__name__}. "
            "Pass the whole token, as event.resume_token gives it"
        )
    return Timestamp(int(data[_SECONDS], 16), int(data[_INCREMENT], 16))


@dataclass(frozen=True, slots=True)
class Position:
    """Mark a place in a stream: what is at or before it is done.

    Positions are ordered by the ``_data`` of their tokens, which sorts as the events do on every level of cursor.
    Servers of different versions write ``_data`` differently: then only the cluster times are compared, and what shares
    one counts as not done, so that an event is rather repeated than lost. Positions of different clusters must not be
    compared; the caller tells them apart by `cluster`.

    :param token: the whole resume token, ``_typeBits`` too; None: the position is a time, and done is what is before
        `cluster_time`. It is left out of the repr, because it holds the document's ``_id`` and may be megabytes long.
    :param cluster_time: of the token.
    :param fingerprint: of the stream that saved it; ``""``: unknown.
    :param cluster: identity of the cluster that wrote the token; ``""``: unknown.
    :param saved_at: when it was saved, in seconds since the epoch.
    :raises ValueError: when the token is none, or of another cluster time: a stored position is corrupt.
    """

    token: Mapping[str, Any] | None = field(repr=False, hash=False)
    cluster_time: Timestamp
    fingerprint: str = ""
    cluster: str = ""
    saved_at: float = 0.0

    def __post_init__(self) -> None:
        if self.token is not None and time_of(self.token) != self.cluster_time:
            raise ValueError(
                f"the resume token is not of the cluster time {self.cluster_time}; "
                "use Position.of, which reads the time from the token"
            )

    @classmethod
    def of(cls, token: Mapping[str, Any], fingerprint: str = "", cluster: str = "") -> Position:
        """Make the position of a resume token.

        :param token: the whole token.
        :param fingerprint: of the stream that read it.
        :param cluster: identity of the cluster that it came from.
        :raises ValueError: when it is no resume token.
        """
        time = time_of(token)
        return cls(dict(token), time, fingerprint, cluster)

    def covers(self, token: Mapping[str, Any]) -> bool:
        """Tell whether the event with this resume token is at or before this position; False when that cannot be known.

        :param token: the event's whole token.
        """
        if self.token is not None:
            # The server accepts lower-case digits too (a token given by hand), and they would sort after all others.
            here: str = self.token["_data"].upper()
            there: str = token["_data"].upper()
            if here[_VERSION] == there[_VERSION]:
                return there <= here
        return time_of(token) < self.cluster_time

    def reaches(self, other: Position) -> bool:
        """Tell whether all that is done at `other` is done here too; False when that cannot be known.

        The same place is reached.

        :param other: a position of the same cluster.
        """
        if other.token is None:
            return other.cluster_time <= self.cluster_time
        return self.covers(other.token)

    def later(self, other: Position) -> Position:
        """Give `other` when it reaches this position, else this one.

        A position that is moved by this alone never goes backwards.

        :param other: a position of the same cluster.
        """
        return other if other.reaches(self) else self


def earliest(positions: Iterable[Position]) -> Position | None:
    """Find the position that all the others reach; None when there are no positions.

    Where it cannot be known which of several is the earliest (one cluster time, different versions), it is that time.

    :param positions: of one cluster; the first of equal ones is taken.
    """
    found = list(positions)
    if not found:
        return None
    time = min(position.cluster_time for position in found)
    tied = [position for position in found if position.cluster_time == time]
    for position in tied:
        if all(other.reaches(position) for other in tied):
            return position
    return replace(tied[0], token=None, fingerprint="")


def _around(scope: str) -> tuple[str, str, str]:
    # Collection names may hold dots, database names may not: the first dot divides them.
    return scope, scope.partition(".")[0], ""


def narrowest(scope: str, among: Collection[str]) -> str | None:
    """Find the narrowest scope that contains `scope`: the row that governs it, or the stream that owns it.

    None when none does.

    :param scope: ``""``, a database, or ``database.collection``.
    :param among: the stored or the declared scopes.
    """
    for around in _around(scope):
        if around in among:
            return around
    return None


class Resumption:
    """Say where a stream starts, which events it need not handle again, and what to save as it goes on.

    Made by :func:`resume`. The stream inherits (a) its own row, else that of the narrowest stored scope around it, and
    (b) every row inside its scope that no other stream of this run owns. It starts at the earliest of them and drops
    what the row that governs an event covers.

    - An own row is always written, with the first transaction of the run, also when only rows inside the scope were
      stored. It begins at the start position: namespaces that no row governed are watched from there on, and a crash,
      or a later run that declares only a part of this scope, must still find that promise. For the same reason what is
      at or before the start is dropped for them too; otherwise a stream that is opened by time would hand out events
      that its own row already counts as done.
    - A row from around the scope is read and not written, since it governs other namespaces too. The own row begins at
      *that* position, not at the start: rows inside the scope may lie further back, and what lies between is done for
      all other namespaces.
    - All inherited rows are kept, each at the later of itself and the finished prefix, until the prefix has reached
      every one of them, (a) too. Before that a row inside the scope must not go: a wider row further ahead would govern
      its namespaces, and events would be lost.

    :ivar start: where to start; None: nothing is stored, ``start_at`` applies. Its `fingerprint` is that of the row, or
        ``""`` for a time.
    :ivar inherited: the rows as stored, by scope. All of them, not only `start`, must be of this cluster and not in the
        future: a row from elsewhere or from later would drop events that nobody has handled.
    :ivar catching_up: whether :meth:`drops` must be asked; False for good once the finished prefix is past the cluster
        times of all rows.
    """

    def __init__(self, scope: str, outer: Mapping[str, Position], inner: Mapping[str, Position]) -> None:
        self.scope = scope
        self.inherited: Mapping[str, Position] = {**outer, **inner}
        self.start = earliest(self.inherited.values())
        self.catching_up = self.start is not None
        self._inner = inner
        self._own = next(iter(outer.values()), self.start)
        self._prefix: Position | None = None
        self._governing = dict(self.inherited)
        if self.start is not None and not outer:
            self._governing[scope] = self.start

    def drops(self, database: str | None, collection: str | None, token: Mapping[str, Any]) -> bool:
        """Tell whether an event was done by an earlier run, or lies before the stream's first position.

        :param database: of the event's namespace; None (invalidate): the event concerns the stream.
        :param collection: of the event's namespace; None: the event concerns the database.
        :param token: the event's whole resume token.
        """
        if database is None:
            namespace = self.scope
        else:
            namespace = database if collection is None else f"{database}.{collection}"
        row = narrowest(namespace, self._governing)
        return row is not None and self._governing[row].covers(token)

    def rows(self, prefix: Position) -> dict[str, Position | None]:
        """Give what to save once everything of this stream up to `prefix` is finished; None deletes a row.

        Holds the own row and the inherited ones inside the scope, and never another. No position goes backwards,
        whatever `prefix` is. It is to be saved in one transaction, with the rows of all streams at the first time. Rows
        that are to be deleted stay in every later answer, so that a transaction that failed needs no memory.

        :param prefix: the finished prefix; at first the position of the opened cursor, or `start`.
        """
        prefix = self._prefix = prefix if self._prefix is None else self._prefix.later(prefix)
        rows = self.inherited.values()
        # Stricter than for deleting: a cursor that is opened by time begins with the events of that time once more.
        if all(row.cluster_time < prefix.cluster_time for row in rows):
            self.catching_up = False
        reached = all(prefix.reaches(row) for row in rows)
        own = prefix if self._own is None else self._own.later(prefix)
        inner = {scope: None if reached else row.later(prefix) for scope, row in self._inner.items()}
        return {self.scope: own, **inner}


def resume(stored: Mapping[str, Position], scope: str, scopes: Collection[str]) -> Resumption:
    """Find what a stream inherits from the stored positions.

    :param stored: all rows of this consumer, by scope.
    :param scope: what the stream was declared to watch.
    :param scopes: the scopes of all streams of this run; a stream owns the rows for which its scope is the narrowest of
        these.
    """
    declared = {*scopes, scope}
    around = narrowest(scope, stored)
    outer = {} if around is None else {around: stored[around]}
    inner = {row: position for row, position in stored.items() if row != scope and narrowest(row, declared) == scope}
    return Resumption(scope, outer, inner)
