"""Which faults come when: pure, and the same for the same seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from rigatoni.codes import RESUMABLE_CODES

#: How many processes watch; one of them stands by.
WATCHERS = 2

OF_WATCHERS = ("watcher_killed", "watcher_terminated")
OF_SERVERS = ("primary_killed", "primary_stopped", "primary_frozen", "step_down", "majority_lost")
KINDS = (*OF_WATCHERS, *OF_SERVERS, "failpoint")

#: 13388 cannot be injected: the server asks for information that goes with it.
INJECTABLE_CODES = sorted(RESUMABLE_CODES - {13388})

#: Fails a getMore after its cursor was looked up, as a change stream's; only this earns the label "resumable".
AFTER_CHECKOUT = "failGetMoreAfterCursorCheckout"


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong.

    :ivar at: seconds from the beginning, at the earliest: a fault waits for the earlier ones of its track.
    :ivar duration: seconds until it is mended.
    :ivar how: what else there is to say, by kind.
    """

    at: float
    kind: str
    duration: float = 0.0
    how: Mapping[str, Any] = field(default_factory=dict)


def planned(seed: int, seconds: float, members: int = 3) -> dict[str, list[Fault]]:
    """Draw the faults of each track: those of a track follow each other, those of different ones may coincide.

    The members of the replica set are one track, so that no fault but "majority_lost" takes its majority.
    """
    watchers = {
        f"watcher {slot}": _track(Random(f"{seed} watcher {slot}"), seconds, (3.0, 12.0), _fault_of_a_watcher)
        for slot in range(WATCHERS)
    }
    kinds = [kind for kind in OF_SERVERS if kind != "majority_lost" or members > 2]
    return watchers | {
        "servers": _track(Random(f"{seed} servers"), seconds, (2.0, 8.0), lambda random: _fault_of(kinds, random)),
        "failpoints": _track(Random(f"{seed} failpoints"), seconds, (2.0, 8.0), _failpoint),
    }


def _track(random: Random, seconds: float, pause: tuple[float, float], draw: Callable[[Random], Fault]) -> list[Fault]:
    track: list[Fault] = []
    at = random.uniform(*pause)
    while True:
        drawn = draw(random)
        if at + drawn.duration > seconds:
            return track
        track.append(Fault(round(at, 3), drawn.kind, drawn.duration, drawn.how))
        at += drawn.duration + random.uniform(*pause)


def _fault_of_a_watcher(random: Random) -> Fault:
    kind = random.choice(OF_WATCHERS)
    # Often at once, sometimes so late that nobody watches meanwhile.
    absence = round(random.choice([0.0, random.uniform(0.0, 4.0)]), 3)
    return Fault(0.0, kind, absence, {"patched": random.random() < 0.5})


def _fault_of(kinds: list[str], random: Random) -> Fault:
    kind = random.choice(kinds)
    longest = 15.0 if kind == "primary_frozen" else 6.0
    return Fault(0.0, kind, round(random.uniform(1.0, longest), 3))


def _failpoint(random: Random) -> Fault:
    command = random.choice(["getMore", "getMore", "aggregate"])
    data: dict[str, Any] = random.choice(
        [
            {"errorCode": random.choice(INJECTABLE_CODES)},
            {"errorCode": random.choice(INJECTABLE_CODES)},
            {"closeConnection": True},
            # Silent for longer than the watcher's patience, or not.
            {"blockConnection": True, "blockTimeMS": random.randrange(100, 8000)},
        ]
    )
    point = "failCommand"
    if "errorCode" in data and command == "getMore" and random.random() < 0.5:
        point = AFTER_CHECKOUT
    commands = {"failCommands": [command]} if point == "failCommand" else {}
    times = 1 if "blockConnection" in data else random.choice([1, 1, 2, 5])
    return Fault(0.0, "failpoint", 0.0, {"point": point, "times": times, "data": {**commands, **data}})
