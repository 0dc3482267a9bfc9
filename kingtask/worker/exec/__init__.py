"""One attempt's process: find the executable, spawn it, capture its output, decide its outcome."""
