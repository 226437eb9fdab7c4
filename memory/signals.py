"""What memory tells the apps above it."""

from __future__ import annotations

from django.dispatch import Signal

memories_changed = Signal()
"""A user's memories changed. Sent inside the transaction that moved the version: project_id, user_id, version."""

loaded = Signal()
"""A search had to be computed: query, and count of what was found. Sent after the answer; receivers must be quick."""

ticked = Signal()
"""About a second has passed in this process: save what was only noted. Sent by its upkeep, off every request's path."""

swept = Signal()
"""The sweeper ran: hand over whatever is due."""
