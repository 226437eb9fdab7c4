"""A long conversation by other people: what of it stays in the context, and at what price."""

from __future__ import annotations

import pytest

from bench.stm import context
from memory.models import Message, Session

pytestmark = pytest.mark.django_db(transaction=True)


def test_of_500_turns_a_tenth_remains_with_the_newest_verbatim_and_what_was_told_lately(project):
    bounds = context.show(context.measure(project.pk))
    assert [bound for bound, held in bounds if not held] == []
    assert Message.objects.count() == Session.objects.count() * context.TURNS, "the messages themselves are all there"
