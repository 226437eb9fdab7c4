"""Delivering accepted writes to Mem0: at least once to Mem0, stored once for the reader (PROTOCOL A2–A8).

`work` brings a lane's jobs to their ends, one after the other · `lanes` who may · `attempts` one call, recorded before
it is sent · `deletes` what a delete by user, agent or run waits for and whom it touches · `erasing` a user's erase ·
`settle` what became of a call whose outcome is unknown · `completion` the end of a job ·
`reconcile` second copies, found later.
"""

from memory.delivery.completion import complete_overdue, complete_unconfirmed
from memory.delivery.erasing import complete_erasures
from memory.delivery.lanes import SENDABLE, with_work
from memory.delivery.work import deliver

__all__ = ["SENDABLE", "complete_erasures", "complete_overdue", "complete_unconfirmed", "deliver", "with_work"]
