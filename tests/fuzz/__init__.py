"""Coverage-guided fuzzing of what the network can send: `python -m tests.fuzz decoder|router --seconds N`."""
