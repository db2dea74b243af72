"""PolicyService: the model that is being trained, answering people."""
