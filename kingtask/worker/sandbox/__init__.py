"""Isolation of attempts: users, limits, launchers, private directories."""
