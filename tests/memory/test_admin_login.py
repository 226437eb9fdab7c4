"""Guessing the admin's password comes to an end."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import User
from django.test import Client

from memory import admin_login

pytestmark = pytest.mark.django_db

RIGHT = "correct horse battery"


@pytest.fixture(autouse=True)
def people(redis):
    for name in ("ann", "ben"):
        User.objects.create_user(name, password=RIGHT, is_staff=True)


def log_in(name: str, password: str, address: str = "10.0.0.1") -> bool:
    said = Client(REMOTE_ADDR=address).post(
        "/admin/login/", {"username": name, "password": password, "next": "/admin/"}
    )
    return said.status_code == 302


def test_after_some_failures_even_the_right_password_is_refused_from_there():
    for _ in range(admin_login.MOST_FOR_A_NAME):
        assert not log_in("ann", "wrong")
    assert not log_in("ann", RIGHT)
    assert log_in("ann", RIGHT, address="10.0.0.2")
    assert log_in("ben", RIGHT)


def test_a_success_clears_the_failures_before_it():
    for _ in range(3):
        for _ in range(admin_login.MOST_FOR_A_NAME - 1):
            log_in("ann", "wrong")
        assert log_in("ann", RIGHT)


def test_trying_many_names_from_one_address_ends_too(monkeypatch):
    monkeypatch.setattr(admin_login, "MOST_FROM_AN_ADDRESS", 4)
    for number in range(4):
        log_in(f"name-{number}", "wrong")
    assert not log_in("ben", RIGHT)


def test_the_refusal_ends_with_its_window(redis):
    for _ in range(admin_login.MOST_FOR_A_NAME):
        log_in("ann", "wrong")
    lives = [redis.ttl(key) for key in redis.keys("*login:*")]
    assert lives
    assert all(0 < seconds <= admin_login.WINDOW_SECONDS for seconds in lives)
