"""Making everything cached for a scope unreachable: for changes that others made in Mem0."""

from __future__ import annotations

import logging

from django.db import Error as DatabaseError
from django.db import transaction

from memory import signals, versions
from memory.errors import DatabaseUnavailable
from memory.tenancy.projects import Policy
from memory.types import Scope, Version

log = logging.getLogger(__name__)


def invalidate(scope: Scope, policy: Policy) -> Version:
    """Move versions and floors of the scope's ids (PROTOCOL B9) and ask for a warm; the version of its pin.

    Where Redis does not confirm the publication, readers may go by their copy for the rest of its lease.
    DatabaseUnavailable, with nothing moved.
    """
    try:
        with transaction.atomic():
            moved = versions.move(scope.pins(), floor=True)
            if scope.user_id is not None:
                version = moved[0].number
                signals.memories_changed.send(None, project_id=policy.id, user_id=scope.user_id, version=version)
    except DatabaseError as error:
        raise DatabaseUnavailable("nothing was invalidated") from error
    confirmed = versions.publish(moved)
    log.info(
        "invalidated",
        extra={"project": policy.id, "user_id": scope.user_id, "version": str(moved[0]), "confirmed": confirmed},
    )
    return moved[0]
