"""A throw-away replica set of real ``mongod`` processes, for tests and for trying things out.

::

    with ReplicaSet(members=3) as replica_set:
        watcher = Watcher(replica_set.uri, "shop")
        replica_set.kill(replica_set.primary())

The server comes from ``RIGATONI_MONGOD``, from PATH, or from the extra ``embedded``.
"""

from .binary import find_mongod
from .replica_set import ReplicaSet

__all__ = ["ReplicaSet", "find_mongod"]
