"""Which collections keep pre- and post-images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..table import word
from .finding import UNKNOWN, Finding, note, ok

if TYPE_CHECKING:
    from rigatoni.client import Client

#: More collections are counted, not listed.
_MOST = 20


def examine_images(client: Client, database: str | None, collections: tuple[str, ...]) -> Iterator[Finding]:
    """Look at the options of each collection."""
    if database is None:
        yield note("images", "not looked at", "give --database")
        return
    options = _options(client, database)
    if options is None:
        yield note("images", f"{UNKNOWN} (listCollections)", f'grant the role {{role: "read", db: {word(database)}}}')
        return
    for name in collections or sorted(options)[:_MOST]:
        yield _finding(database, name, options.get(name))
    if not collections and len(options) > _MOST:
        yield note("images", f"{len(options) - _MOST} more collections", "name those of interest by --collection")


def _finding(database: str, name: str, options: Mapping[str, Any] | None) -> Finding:
    place = word(f"{database}.{name}")
    if options is None:
        return note("images", f"{place} is not there yet", "nothing to mend, if the name is right")
    if options.get("changeStreamPreAndPostImages", {}).get("enabled"):
        return ok("images", f"{place} keeps pre- and post-images")
    command = f"db.runCommand({{collMod: {json.dumps(name)}, changeStreamPreAndPostImages: {{enabled: true}}}})"
    needing = 'full_document="required" and full_document_before_change= find none'
    return note("images", f"{place} keeps no pre- and post-images: {needing}", f"use {database}; {command}")


def _options(client: Client, database: str) -> dict[str, Mapping[str, Any]] | None:
    """Give the options of each collection; None where that is not permitted."""
    from pymongo.errors import OperationFailure

    try:
        found = client[database].list_collections(filter={"type": "collection"})
        return {each["name"]: each.get("options", {}) for each in found if not each["name"].startswith("system.")}
    except OperationFailure:
        return None
