"""Four workers that serve, one of which also handles changes; the others stand by to take over.

    pip install ".[flask]" gunicorn
    cd examples/gunicorn
    RIGATONI_URI=mongodb://localhost:27017 gunicorn web:app

Kill the worker that http://127.0.0.1:8000 names: another one goes on.
"""

from rigatoni.contrib.gunicorn import post_worker_init, worker_exit

__all__ = ["post_worker_init", "worker_exit"]

worker_class = "gevent"
workers = 4
