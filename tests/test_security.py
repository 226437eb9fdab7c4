"""What must hold of the whole: clean checks, and nothing secret where it can be read."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.live import ROOT


def run(*words: str, **env: str) -> None:
    """A command of the project's, which must succeed."""
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=os.environ | env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_bandit_finds_nothing_that_is_not_argued():
    run("-m", "bandit", "-q", "-c", "pyproject.toml", "-r", "memsvc", "memory", "cachewarm")


def test_production_settings_pass_djangos_checks_for_deployment():
    upstream = {"MEM0_USE_REST_API": "true", "MEM0_REST_API_URL": "https://mem0.example.org"}
    production = {"DEBUG": "false", "HTTPS": "true", "ALLOWED_HOSTS": "memory.example.org"}
    run("manage.py", "check", "--deploy", "--fail-level", "WARNING", **upstream, **production)
