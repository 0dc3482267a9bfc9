"""Processes that attempts leave behind: find them, end them, also when the worker itself dies."""
