# SPDX-License-Identifier: Apache-2.0
"""What is known of replicas: how fast each is, and how much of what it was told of it has still to do."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

Replica = Hashable


class Outlook:
    """Speeds and backlogs as of now, which is the time of the last `join`.

    A backlog is work that was not done at some time; until somebody tells again, it becomes less by what the replica does at its
    speed. Replicas are told of at different times, so without that equal ones would look unequal.
    """

    def __init__(self, replicas: Iterable[Replica]) -> None:
        self._crew: dict[Replica, None] = dict.fromkeys(replicas)
        self._speeds: dict[Replica, float] = {}
        self._backlogs: dict[Replica, tuple[float, float]] = {}
        self._now_s = 0.0

    def join(self, replica: Replica, now_s: float) -> None:
        """The replica takes part, now."""
        self._crew[replica] = None
        self._now_s = now_s

    def leave(self, replica: Replica) -> None:
        """Nothing is known of it any more."""
        for known in (self._crew, self._speeds, self._backlogs):
            known.pop(replica, None)

    def set_speed(self, replica: Replica, speed: float) -> None:
        """Work a second; what is not above 0 is not believed."""
        if speed > 0:
            self._speeds[replica] = speed

    def set_backlog(self, replica: Replica, work: float, at_s: float) -> None:
        """So much was not done at that time."""
        self._backlogs[replica] = (max(work, 0.0), at_s)

    def add(self, replica: Replica, work: float) -> None:
        """The replica was told of more; counted where its backlog is known."""
        if replica in self._backlogs:
            before, at_s = self._backlogs[replica]
            self._backlogs[replica] = (before + work, at_s)

    def has_backlog(self, replica: Replica) -> bool:
        """Whether anybody has told."""
        return replica in self._backlogs

    def backlog(self, replica: Replica | None) -> float:
        """What it has still to do now; 0 where nobody has told."""
        if replica not in self._backlogs:
            return 0.0
        work, at_s = self._backlogs[replica]
        return max(work - self.speed(replica) * (self._now_s - at_s), 0.0)

    def speed(self, replica: Replica | None) -> float:
        """Its own, or the mean of the others, or 1."""
        known = self._speeds
        if replica in known:
            return known[replica]
        return sum(known.values()) / len(known) if known else 1.0

    def all_backlogs(self) -> float:
        """Of everybody together."""
        return sum(map(self.backlog, self._backlogs))

    def latest_s(self, but: Replica | None) -> float:
        """When the last of the others has done its backlog, from now."""
        others = (each for each in self._backlogs if each != but)
        return max((self.backlog(each) / self.speed(each) for each in others), default=0.0)

    def all_speeds(self) -> float:
        """Of all that take part; those that are not known are as fast as the mean."""
        num, known = max(len(self._crew), 1), self._speeds
        return sum(known.values()) * num / len(known) if known else float(num)
