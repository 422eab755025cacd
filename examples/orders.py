from rigatoni import Watcher

watcher = Watcher("mongodb://localhost:27017", "shop")


@watcher.on("insert", collection="orders")
def ship(event):
    print("shipping", event.full_document["item"])


if __name__ == "__main__":
    watcher.run()
