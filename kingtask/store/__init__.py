"""The record: Redis, and the only code that talks to it."""
