"""Pictures of items: of added ones from the database, of the catalogue's from the prepared folder.

id ─ added? ─► database
   └ else ──► run/data.json ─► prepared folder ─ shard at offset, checked against its sha256
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from data_prep.shards import PreparedData
from mmrec.serving.database import Database
from mmrec.serving.settings import ServiceSettings
from mmrec.serving.swap import version_folder

CONTENT_TYPES = {"jpg": "image/jpeg", "png": "image/png"}
"""By extension; `data_prep.media.normalise` writes no other picture."""


@dataclass(frozen=True)
class Picture:
    """A picture as it was stored; `extension` is a key of CONTENT_TYPES."""

    extension: str
    data: bytes


class Pictures:
    """Finds the first picture of an item.

    Args:
        settings: of the service: where its versions and their data lie.
        database: of added items.
    """

    def __init__(self, settings: ServiceSettings, database: Database) -> None:
        self._settings, self._database = settings, database
        self._prepared: dict[str, PreparedData | None] = {}
        self._lock = Lock()

    def first(self, item_id: str, version: str | None) -> Picture | None:
        """The first picture of an item; None: there is none, or it is not at hand.

        Args:
            item_id: external id.
            version: of the model that answers; None: added items alone are looked at.

        Raises:
            DBAPIError: the database does not answer.
            DataError: the prepared folder cannot be read.
        """
        added = self._database.added_item(item_id)
        if added is not None:
            images = [each for each in added.media if each.kind == "image"]
            return Picture(images[0].extension, images[0].data) if images else None
        if version is None:
            return None
        with self._lock:
            if version not in self._prepared:
                self._prepared[version] = self._open(version)
            data = self._prepared[version]
            row = None if data is None else data.items.index_of(item_id)
            if data is None or row is None or data.items.is_deleted(row):
                return None
            members = data.items.media(row, "image")
            if not members:
                return None
            return Picture(members[0].name.rpartition(".")[2], data.items.read(members[0]))

    def _open(self, version: str) -> PreparedData | None:
        """The prepared folder of a version; None: a bundle, or the folder has gone."""
        settings = self._settings
        is_first = version == settings.path.name
        run = settings.path if is_first else version_folder(settings.models, version)
        binding = run / "data.json"
        if not binding.is_file():
            return None
        bound = json.loads(binding.read_text(encoding="utf-8"))
        folder = settings.data or Path(bound["path"])
        return PreparedData.open(folder) if folder.is_dir() else None
