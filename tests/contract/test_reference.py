"""The pages that are made from the program say what it says now, and have a word on everything."""

from __future__ import annotations

import os
from dataclasses import fields

import pytest

from jobworker.settings import load, schema
from support import reference


@pytest.mark.parametrize("name", reference.PAGES)
def test_a_page_is_what_the_program_makes(name: str) -> None:
    with open(os.path.join(reference.ROOT, "docs", name), encoding="utf-8") as file:
        assert file.read() == reference.PAGES[name](), "run `make docs` and commit the result"


def test_every_setting_is_explained() -> None:
    tables = [(table, reference.type_of(schema.Settings, name)) for name, table in load.SECTIONS.items()]
    for table, cls in ((load.TOP, schema.Settings), (load.CERTIFICATES, schema.CertificateSettings), *tables):
        told = reference.meanings(cls)
        assert {field for field, _ in table.values()} <= told.keys()
        # And nothing is explained that there is not.
        assert told.keys() <= {field.name for field in fields(cls)}
