"""Every guard that `make mutants` removes is still there to be removed, and so is the test that must notice."""

from __future__ import annotations

import pytest

from tests.mutants import MUTANTS, ROOT, Mutant, places


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_guards_text_stands_once_in_the_product(mutant: Mutant) -> None:
    assert len(places(ROOT, mutant)) == 1
    path, _, name = mutant.test.partition("::")
    assert f"def {name}" in (ROOT / path).read_text()
