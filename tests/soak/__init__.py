"""Faults at random times while writers write and two processes watch, and an oracle that says what may come of it.

``python -m soak --minutes 5`` (in this folder's parent), or ``tox -e soak -- --minutes 5 --seed 7``.
"""
