"""A Flask application whose handlers run in the same workers as its requests; see ``gunicorn.conf.py``."""

import os

from flask import Flask, jsonify
from pymongo import MongoClient

from rigatoni.contrib.flask import Rigatoni

URI = os.environ.get("RIGATONI_URI", "mongodb://localhost:27017")

app = Flask(__name__)
app.config.from_mapping(
    RIGATONI_URI=URI, RIGATONI_DATABASE="shop", RIGATONI_STORE=os.environ.get("RIGATONI_STORE", "rigatoni.db")
)
rigatoni = Rigatoni(app)


@rigatoni.on("insert", collection="orders")
def ship(event):
    with MongoClient(URI) as client:
        # By the event's id, so that an event that comes again after a crash makes no second parcel.
        parcel = {"item": event.full_document["item"], "worker": os.getpid()}
        client.shop.parcels.update_one({"_id": event.id}, {"$setOnInsert": parcel}, upsert=True)


@app.get("/")
def status():
    watcher = rigatoni.watcher
    # The row that the active worker writes, so that every worker gives the same answer.
    return jsonify(watcher.store.status(watcher.name))
