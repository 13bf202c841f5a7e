"""``hpedge infer --monitor DIR``: the output that counts."""

import fcntl
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hpdval_edge.atomic import disk_errors
from hpdval_edge.bundle import Bundle
from hpdval_edge.errors import UsageError
from hpdval_edge.monitor.counts import FILE, Counts, read_counts
from hpdval_edge.monitor.reference import no_reference, read_reference
from hpdval_edge.monitor.review import ReviewQueue, least_sure
from hpdval_edge.outputs.output import Result
from hpdval_edge.outputs.overlays import as_image
from hpdval_edge.progress import say

# Seconds between two writings of what was counted: what a crash may cost.
INTERVAL = 60.0
# Times before are no time of day: seconds from a film's beginning.
EPOCH = 1e9


class Monitor:
    """Counts every result and keeps the review queue, in a folder, on top of what earlier runs left there.

    What a label is named by is the bundle's own threshold, whatever was chosen for this run. Memory and files are
    bounded; both are written whole, every INTERVAL and at the end.

    Args:
        clock: seconds since 1970; the time of a picture whose frame has none.

    Raises:
        UsageError: the folder is another bundle's, or another process writes there. BadData: it is damaged.
    """

    def __init__(self, folder: Path, bundle: Bundle, *, copies: bool, clock: Callable[[], float] = time.time) -> None:
        self.folder, self.bundle, self.clock = folder, bundle, clock
        self.pictures = copies
        calibration = bundle.calibration
        self.slope = calibration.logit_scale / calibration.temperature
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self.lock = (folder / ".lock").open("w")
        try:
            self._lock()
            self.counts = self._open()
            self.queue = ReviewQueue(folder, copies=copies)
        except BaseException:
            self.lock.close()
            raise
        self.saved = time.monotonic()

    def _lock(self) -> None:
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another process writes to --monitor {self.folder}; give each a folder of its own, and look at them "
                "together: hpedge monitor A B."
            ) from None

    def _open(self) -> Counts:
        if (self.folder / FILE).is_file():
            counts = read_counts(self.folder)
            if counts.bundle != self.bundle.fingerprint():
                raise UsageError(
                    f"--monitor {self.folder} watched another bundle ({counts.bundle[:12]}) than {self.bundle.path}; "
                    "take a new folder for it."
                )
            return counts
        reference = read_reference(self.bundle)
        if reference is None:
            say(
                f"note: bundle {self.bundle.path} has no reference of validation scores, so that drift cannot be told; "
                "export it again."
            )
        return Counts.of(self.bundle, reference or no_reference(self.bundle))

    def write(self, result: Result) -> None:
        """Count one result; UsageError where the bundle was loaded again with other labels."""
        frame, prediction, thresholds = result.frame, result.prediction, self.bundle.thresholds
        if prediction.label_set and prediction.label_set.bundle != self.counts.bundle:
            raise UsageError(
                f"bundle {self.bundle.path} was changed while --monitor {self.folder} counted its labels; start again "
                "with a new folder."
            )
        when = frame.time if frame.time is not None and frame.time > EPOCH else self.clock()
        named = prediction.scores >= thresholds
        self.counts.add(prediction.scores, named, when)
        labels = self.counts.labels
        column, margin = least_sure(prediction.scores, thresholds, self.slope)
        doubt = {
            "time": when,
            "label": labels[column],
            "score": round(float(prediction.scores[column]), 6),
            "threshold": round(float(thresholds[column]), 6),
            "probability": round(float(prediction.probabilities[column]), 6),
            "margin": round(margin, 6),
            "labels": tuple(labels[i] for i in np.flatnonzero(named)),
        }
        self.queue.offer(frame, doubt, as_image(result.picture) if self.pictures else None)
        if time.monotonic() - self.saved >= INTERVAL:
            self._save()

    def _save(self) -> None:
        self.counts.save(self.folder)
        self.queue.save()
        self.saved = time.monotonic()

    def close(self) -> None:
        """Write what was counted, and let others in."""
        try:
            self._save()
        finally:
            self.lock.close()
