"""``solon ablate``: variants of one configuration, what each does, and what others have found.

``spec`` reads the file of rows, ``variants`` turns rows and seeds into configurations and says what
they share, ``runner`` makes their runs, ``figures`` measures them, ``estimates`` has the intervals
and the rule of the verdicts, ``report`` and ``picture`` show them.
"""
