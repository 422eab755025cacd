"""Ship each order that is inserted.

    pip install .
    python examples/orders.py

MongoDB must be a replica set. Kill the program whenever you like: the next start goes on where it was, as
``rigatoni.db`` in the current folder says. Ctrl-C ends it in order.
"""

from rigatoni import Watcher

watcher = Watcher("mongodb://localhost:27017", "shop")


@watcher.on("insert", collection="orders")
def ship(event):
    print("shipping", event.full_document["item"])


if __name__ == "__main__":
    watcher.run()
