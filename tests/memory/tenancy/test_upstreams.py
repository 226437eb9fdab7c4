"""A project's own Mem0: where it may be, and that nothing of the former one is served."""

from __future__ import annotations

import pytest

from memory import stack, versions
from memory.clock import Deadline
from memory.errors import OriginUnavailable
from memory.models import Project
from memory.tenancy import projects, upstreams
from memory.tenancy.projects import policy
from memory.types import Pin
from tests.operators import operator, told

pytestmark = pytest.mark.django_db

SECRET = "key-of-the-upstream"


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://mem0.example.org", "file:///etc/passwd", "gopher://x", "mem0.example.org", "http://", "http://[::1"),
        *("http://key@mem0.example.org", "https://u:p@mem0.example.org", "https://mem0.example.org/?a=b"),
        *("http://127.0.0.1:8888", "http://[::1]", "http://10.0.0.7", "http://192.168.1.1", "http://[fd00::1]"),
        *("http://169.254.169.254/latest", "http://[fe80::1]", "http://[fd00:ec2::254]", "http://100.100.100.200"),
        *("http://[64:ff9b::169.254.169.254]", "http://[64:ff9b::10.0.0.1]", "http://[64:ff9b::7f00:1]"),
        *("http://[::ffff:169.254.169.254]", "http://0.0.0.0", "http://224.0.0.1", "http://x:99999"),
    ],
)
def test_an_upstream_is_http_without_secrets_at_a_public_address(url):
    with pytest.raises(ValueError, match=r"\w"):
        upstreams.check(url)


def test_a_private_host_needs_the_operators_leave_and_metadata_gets_none(settings):
    settings.PROJECT_UPSTREAM_HOSTS = frozenset({"mem0.internal", "169.254.169.254", "10.0.0.7"})
    upstreams.check("http://10.0.0.7:8888")
    assert upstreams.permitted("MEM0.internal", "10.0.0.9")
    assert not upstreams.permitted("else.internal", "10.0.0.9")
    assert upstreams.permitted("else.example.org", "93.184.216.34")
    assert upstreams.permitted("else.example.org", "64:ff9b::93.184.216.34")
    for address in ("169.254.169.254", "fe80::1%eth0", "fd00:ec2::254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe"):
        assert not upstreams.permitted("169.254.169.254", address)
        assert not upstreams.permitted("mem0.internal", address)


def test_a_project_reaches_its_own_mem0_only_where_it_may(project, mem0_server, settings, ann):
    mem0_server.reset()
    # A name is no address: where it leads is seen when it is connected to.
    project.upstream_url = mem0_server.url.replace("127.0.0.1", "localhost")
    project.upstream_key = mem0_server.key
    projects.save(project)
    projects.forget()
    own = stack.backend(policy(project.pk))
    with pytest.raises(OriginUnavailable, match="not public") as refused:
        own.list(ann, Deadline.after(5))
    assert not refused.value.sent
    settings.PROJECT_UPSTREAM_HOSTS = frozenset({"localhost"})
    (stored,) = own.add(ann, ["tea"], {}, None, Deadline.after(20))
    assert [one.id for one in own.list(ann, Deadline.after(20)).memories] == [stored.id]


def test_another_upstream_makes_what_was_cached_of_the_former_unreachable(redis, project):
    versions.move([pin := Pin(project.pk, "user", "ann")])
    before, generation = versions.stored(pin), policy(project.pk).generation
    project.upstream_url = "https://mem0.example.org"
    projects.save(project)
    projects.forget()
    after = versions.stored(pin)
    assert after.floor == after.number > before.number
    assert policy(project.pk).generation == generation + 1
    assert policy(project.pk).local_search == "degraded"


def test_the_key_of_an_upstream_is_never_shown_and_belongs_to_one_server(project):
    page, person = (
        f"/admin/memory/project/{project.pk}/change/",
        operator("memory.view_project", "memory.change_project"),
    )
    sent = {"name": "Test", "slug": "test", "on_unknown": "hold", "extract_on": "never", "extract_every_turns": 10}

    def save(**changes: str) -> str:
        shown = told(person.post(page, sent | changes, follow=True))
        project.refresh_from_db()
        return shown + told(person.get(page))

    shown = save(upstream_url="https://mem0.example.org", upstream_key=SECRET)
    assert project.upstream_key == SECRET
    shown += save(upstream_url="https://mem0.example.org", upstream_key="")
    assert project.upstream_key == SECRET
    shown += save(upstream_url="https://else.example.org", upstream_key="")
    assert project.upstream_key == ""
    assert SECRET not in shown
    assert SECRET not in repr(policy(project.pk))
    assert "not public" in save(upstream_url="http://10.0.0.7")
    assert Project.objects.get().upstream_url == "https://else.example.org"
