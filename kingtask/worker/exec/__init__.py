"""One attempt's process: find the executable, spawn it, capture its output, judge its end."""
