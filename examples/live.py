"""Orders as they come in, live in every browser that is open, by server-sent events.

    pip install ".[flask]"
    export RIGATONI_URI=mongodb://localhost:27017
    flask --app examples/live.py run

Open http://127.0.0.1:5000 twice, and order something in one of the two. Under gunicorn, where every open page holds a
greenlet and not a thread:

    gunicorn -c examples/gunicorn/gunicorn.conf.py --chdir examples live:app
"""

import json
import os
from queue import Empty, Full, Queue

from flask import Flask, Response, request
from pymongo import MongoClient

from rigatoni import MemoryStore
from rigatoni.contrib.flask import Rigatoni

URI = os.environ.get("RIGATONI_URI", "mongodb://localhost:27017")

app = Flask(__name__)
# Browsers are connected to this process, so this process has to see every order: its store is its own.
app.config.from_mapping(RIGATONI_URI=URI, RIGATONI_DATABASE="shop", RIGATONI_STORE=MemoryStore())
rigatoni = Rigatoni(app)
browsers = set()


@rigatoni.on("insert", collection="orders")
def tell(event):
    message = json.dumps({"item": event.full_document["item"]})
    for browser in tuple(browsers):
        try:
            browser.put_nowait(message)
        except Full:
            # It does not keep up: its connection ends, and the browser opens another one.
            browsers.discard(browser)


@app.get("/orders")
def orders():
    def messages():
        browser = Queue(maxsize=100)
        browsers.add(browser)
        try:
            yield "retry: 1000\n\n"
            while browser in browsers:
                try:
                    yield f"data: {browser.get(timeout=15)}\n\n"
                except Empty:
                    yield ": still here\n\n"  # Fails when the browser has gone.
        finally:
            browsers.discard(browser)

    return Response(messages(), mimetype="text/event-stream", headers={"Cache-Control": "no-store"})


@app.post("/orders")
def order():
    with MongoClient(URI) as client:
        client.shop.orders.insert_one({"item": request.form["item"]})
    return "", 204


@app.get("/")
def page():
    return """<!doctype html>
<title>Orders</title>
<form><input name=item value=pasta> <button>Order</button></form>
<ul></ul>
<script>
  document.querySelector("form").onsubmit = submitted => {
    submitted.preventDefault()
    fetch("/orders", {method: "POST", body: new FormData(submitted.target)})
  }
  new EventSource("/orders").onmessage = message => {
    const item = document.createElement("li")
    item.textContent = JSON.parse(message.data).item
    document.querySelector("ul").prepend(item)
  }
</script>
"""
