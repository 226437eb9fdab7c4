"""What memsvc keeps in PostgreSQL."""

from memory.models.erasures import Erasure
from memory.models.feedback import Feedback
from memory.models.jobs import Attempt, IdempotencyRecord, Job, Lane
from memory.models.projects import ApiKey, Project
from memory.models.sessions import Message, Session, Tier
from memory.models.summaries import Snapshot, SnapshotMemory
from memory.models.upkeep import CounterTotal, Heartbeat
from memory.models.users import MemoryUser
from memory.models.versions import PinVersion

__all__ = [
    "ApiKey",
    "Attempt",
    "CounterTotal",
    "Erasure",
    "Feedback",
    "Heartbeat",
    "IdempotencyRecord",
    "Job",
    "Lane",
    "MemoryUser",
    "Message",
    "PinVersion",
    "Project",
    "Session",
    "Snapshot",
    "SnapshotMemory",
    "Tier",
]
