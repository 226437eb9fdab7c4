"""People who work in the admin, by what they may do."""

from __future__ import annotations

from django.contrib.auth.models import Permission, User
from django.test import Client


def operator(*permissions: str) -> Client:
    """A signed-in member of staff with these permissions (`app.codename`) and no others."""
    person = User.objects.create_user(f"op{User.objects.count()}", is_staff=True)
    for name in permissions:
        app, codename = name.split(".")
        person.user_permissions.add(Permission.objects.get(content_type__app_label=app, codename=codename))
    client = Client()
    client.force_login(person)
    return client


def told(response: object) -> str:
    """What a page says."""
    return response.content.decode()  # type: ignore[attr-defined]
