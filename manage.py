#!/usr/bin/env python
"""Django's command line."""

import sys

from django.core.management import execute_from_command_line

import memsvc.celery  # noqa: F401 - names the settings; commands send tasks

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
