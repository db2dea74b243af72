"""JudgeService: which of two responses is better by a principle, and how good one is."""
