"""Settings of the property tests."""

from __future__ import annotations

from hypothesis import settings

# A deadline for one example would measure how busy the machine is.
settings.register_profile("kingtask", deadline=None)
settings.load_profile("kingtask")
