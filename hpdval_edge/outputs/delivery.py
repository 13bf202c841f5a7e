"""Messages to a receiver that may be slow or away: a bounded queue, a thread that sends, and what became of them."""

import random
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from hpdval_edge.errors import MissingDependency
from hpdval_edge.progress import say

QUEUE = 1000
FIRST_WAIT = 0.5
LONGEST_WAIT = 30.0
# Seconds that close waits for what is still queued.
GRACE = 10.0


class Away(Exception):
    """The receiver cannot be reached or asks to come again; the message stays queued."""


class Refused(Exception):
    """The receiver will never take this message."""


@dataclass(slots=True)
class Counts:
    """What became of the messages."""

    sent: int = 0
    dropped: int = 0
    refused: int = 0


class Delivery:
    """Sends messages in order, from a thread of its own, and tries again after growing pauses while nobody answers.

    ``put`` waits for room while the receiver answers, so that a slow one slows a folder of pictures down and loses
    nothing. While it is away, ``put`` never waits: the oldest message is dropped and counted. ``close`` gives what is
    queued ``grace`` seconds, and says on stderr what was sent, dropped and refused.

    Args:
        name: the receiver as people are to read it, without secrets.
        send: delivers one message within a time limit of its own; raises Away or Refused.
        stop: lets go of the connection, called once, from the sending thread.
    """

    def __init__(
        self,
        name: str,
        send: Callable[[bytes], None],
        stop: Callable[[], None],
        *,
        queue: int = QUEUE,
        first_wait: float = FIRST_WAIT,
        grace: float = GRACE,
    ) -> None:
        self.name, self.send, self.stop = name, send, stop
        self.limit, self.first_wait, self.grace = queue, first_wait, grace
        self.counts = Counts()
        self.waiting: deque[bytes] = deque()
        # Messages that have left the queue and are not settled: 0 or 1.
        self.under_way = 0
        self.changed = threading.Condition()
        self.away = False
        self.closing = False
        self.given_up = threading.Event()
        self.thread = threading.Thread(target=self._run, name=f"delivery to {name}", daemon=True)
        self.thread.start()

    def put(self, message: bytes) -> None:
        """Queue one message."""
        with self.changed:
            self.changed.wait_for(lambda: len(self.waiting) < self.limit or self.away)
            if len(self.waiting) >= self.limit:
                self.waiting.popleft()
                self.counts.dropped += 1
            self.waiting.append(message)
            self.changed.notify_all()

    def close(self) -> None:
        """Send what is queued, as far as the grace allows, and say what became of all messages."""
        with self.changed:
            self.closing = True
            self.changed.notify_all()
        self.thread.join(self.grace)
        with self.changed:
            self.given_up.set()
            self.counts.dropped += len(self.waiting) + self.under_way
            self.waiting.clear()
        counts = self.counts
        lost = {"dropped": counts.dropped, "refused": counts.refused}
        say(", ".join([f"{self.name}: {counts.sent} sent", *(f"{n} {what}" for what, n in lost.items() if n)]))

    def check(self) -> None:
        """After close: raise MissingDependency where there were messages and the receiver took none of them."""
        lost = self.counts.dropped + self.counts.refused
        if lost and not self.counts.sent:
            raise MissingDependency(
                f"{self.name}: none of {lost} results arrived; is the address right, and does something listen there?"
            )

    def _run(self) -> None:
        pause = self.first_wait
        try:
            while (message := self._take()) is not None:
                try:
                    self.send(message)
                except Away as error:
                    self._put_back(message, error)
                    self._rest(pause * random.uniform(0.75, 1.25))
                    pause = min(2 * pause, LONGEST_WAIT)
                except Refused as error:
                    self._settle(error)
                else:
                    self._settle(None)
                    pause = self.first_wait
        finally:
            with self.changed:
                # Nobody takes from the queue any more, so nobody may wait for it.
                self.away = True
                self.changed.notify_all()
            self.stop()

    def _take(self) -> bytes | None:
        """The oldest message, waited for; None at the end."""
        with self.changed:
            self.changed.wait_for(lambda: self.waiting or self.closing)
            if not self.waiting:
                return None
            self.under_way = 1
            self.changed.notify_all()
            return self.waiting.popleft()

    def _put_back(self, message: bytes, error: Away) -> None:
        """The message is the oldest again, and the first to go where newer ones have filled the queue or time is up."""
        with self.changed:
            if not self.away:
                say(f"hpedge: {self.name}: {error}; trying again")
            self.away, self.under_way = True, 0
            # After the end it was counted already.
            if len(self.waiting) < self.limit and not self.given_up.is_set():
                self.waiting.appendleft(message)
            elif not self.given_up.is_set():
                self.counts.dropped += 1
            self.changed.notify_all()

    def _settle(self, error: Refused | None) -> None:
        """Count a message that was delivered or, with ``error``, refused."""
        with self.changed:
            if error is None:
                self.counts.sent += 1
            else:
                if not self.counts.refused:
                    say(f"hpedge: {self.name} refuses a result: {error}")
                self.counts.refused += 1
            if self.away:
                say(f"{self.name}: answers again")
            self.away, self.under_way = False, 0
            self.changed.notify_all()

    def _rest(self, seconds: float) -> None:
        """Pause; at the end of the work only for as long as the first pause is."""
        with self.changed:
            self.changed.wait_for(lambda: self.closing, seconds)
        if self.closing:
            self.given_up.wait(self.first_wait)
