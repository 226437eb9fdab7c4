"""What is written about the settings is what they are."""

from __future__ import annotations

import re
import runpy

import pytest

from tests.variables import ROOT, variables

ROW = re.compile(
    r"^\| `(?P<name>[A-Z0-9_]+)`(?P<secret> †)? \| (?:`(?P<default>.*?)`)? *\| (?P<meaning>.+) \|$", re.MULTILINE
)
LINE = re.compile(r"^# (?P<meaning>.+)\n#(?P<name>[A-Z0-9_]+)=(?P<default>.*)$", re.MULTILINE)


def rows() -> dict[str, re.Match[str]]:
    """The tables of docs/configuration.md, by variable."""
    found = list(ROW.finditer((ROOT / "docs" / "configuration.md").read_text()))
    assert len({row["name"] for row in found}) == len(found)
    return {row["name"]: row for row in found}


def test_the_configuration_page_lists_every_variable_with_its_default():
    assert {name: row["default"] or "" for name, row in rows().items()} == {
        name: variable.default for name, variable in variables().items()
    }


def test_the_configuration_page_marks_what_a_file_may_hold():
    assert {name for name, row in rows().items() if row["secret"]} == {
        name for name, variable in variables().items() if variable.secret
    }


def test_the_example_environment_tells_the_same_of_each_variable():
    told = rows()
    lines = {line["name"]: line for line in LINE.finditer((ROOT / ".env.example").read_text())}
    for name in lines.keys() & told.keys():
        assert lines[name]["default"] == (told[name]["default"] or "")
        assert lines[name]["meaning"] == told[name]["meaning"].replace("`", "")


@pytest.mark.parametrize(
    ("host", "status"), [("localhost", 200), ("127.0.0.1", 200), ("a.example", 200), ("b.example", 400)]
)
def test_probes_are_answered_whatever_host_names_the_operator_allows(client, settings, monkeypatch, host, status):
    monkeypatch.setenv("ALLOWED_HOSTS", "a.example")
    settings.ALLOWED_HOSTS = runpy.run_path(str(ROOT / "memsvc" / "settings.py"))["ALLOWED_HOSTS"]
    assert client.get("/healthz", headers={"host": f"{host}:8000"}).status_code == status
