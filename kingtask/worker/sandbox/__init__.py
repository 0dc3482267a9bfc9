"""Isolation of attempts: users, limits, launchers, scratch directories."""
