"""kingtask runs executables asynchronously: now, at a given instant, or again after a failure."""

__version__ = "1.0.0"
