"""How far a job of many trainings is."""

from __future__ import annotations

from ecgfeat.runtime import Progress, Report

__all__ = ["WAY", "Meter"]

WAY = "Fixed Feature"
"""What the study's log lines call it."""


class Meter:
    """Counts what is done of one stage, and reports it.

    Parameters
    ----------
    report : callable
        Takes a `Progress`; may raise `Interrupted`.
    stage : str
    total : int
        In `unit`.
    unit : str
    """

    def __init__(self, report: Report, *, stage: str, total: int, unit: str) -> None:
        self._report = report
        self._stage, self._total = stage, total
        self.unit = unit
        self._done = 0.0

    def advance(self, amount: float, message: str = "") -> None:
        """Count `amount` as done, which may be a part of one, and log a line."""
        self._done += amount
        self._tell(message)

    def tick(self) -> None:
        """Give the report a chance to stop the job."""
        self._tell("")

    def _tell(self, message: str) -> None:
        done = min(self._total, int(self._done + 1e-6))
        self._report(
            Progress(
                stage=self._stage,
                done=done,
                total=self._total,
                unit=self.unit,
                message=message,
            )
        )
