"""CriticService: what is wrong with a response by a principle, and a better one."""
