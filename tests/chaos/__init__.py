"""Real actors on real Ray under fire, for minutes; `python -m tests.chaos`."""
