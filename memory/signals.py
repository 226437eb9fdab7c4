"""What memory tells the apps above it."""

from __future__ import annotations

from django.dispatch import Signal

memories_changed = Signal()
"""A user's memories changed. Sent inside the transaction that moved the version: project_id, user_id, version."""

loaded = Signal()
"""A search had to be computed: query, and count of what was found. Sent after the answer; receivers must be quick."""

erased = Signal()
"""A user is being erased: project_id, user_id. Sent inside the transactions that remove what is kept of the user, more
than once. Receivers remove theirs and return (how many rows, the texts that were embedded for them)."""

ticked = Signal()
"""About a second has passed in this process: save what was only noted. Sent by its upkeep, off every request's path."""

swept = Signal()
"""The sweeper ran: hand over whatever is due."""
