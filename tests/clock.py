"""Time that the test moves."""


class Clock:
    """Stands where ``time.monotonic`` would."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now
