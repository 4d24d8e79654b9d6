"""What a label store is: `curation.json`, written once."""

from __future__ import annotations

import json
from dataclasses import dataclass

from fedvox.curation.store.schema import SCHEMA_VERSION
from fedvox.errors import ConfigError, DataError
from fedvox.storage import Location, exists, read_bytes, write_atomic

SETTINGS_FILE = "curation.json"
_SQLITE = "sqlite:///"


@dataclass(frozen=True)
class StoreSettings:
    """What a label store is.

    Args:
        name: of the collection.
        structures: canonical names, background first.
        images: URI of the brick store of the images.
        database: as it was given; a relative SQLite file lies in the store's folder.
    """

    name: str
    structures: tuple[str, ...]
    images: str
    database: str

    def write(self, location: Location) -> None:
        """Writes the file into a store's folder."""
        fields = {"schema_version": SCHEMA_VERSION, **vars(self)}
        write_atomic(location.child(SETTINGS_FILE), json.dumps(fields, indent=1).encode())

    @classmethod
    def read(cls, location: Location) -> StoreSettings:
        """Reads the file of a store.

        Raises:
            DataError: there is none, it is damaged, or it comes from a newer version.
            StorageError: forbidden, or unreachable.
        """
        file = location.child(SETTINGS_FILE)
        if not exists(file):
            raise DataError(
                f"{location.uri}: holds no label store ({SETTINGS_FILE} is missing)",
                "Check the path, or make one: fedvox curate create.",
                code="no_store",
            )
        try:
            fields = json.loads(read_bytes(file))
            newer = int(fields["schema_version"]) > SCHEMA_VERSION
            found = cls(fields["name"], tuple(fields["structures"]), fields["images"], fields["database"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file.uri}: is damaged ({error!r})", "Restore it from a copy.") from error
        if newer:
            raise DataError(f"{location.uri}: was made by a newer version", "Upgrade fedvox.")
        return found

    def url(self, location: Location) -> str:
        """The database's full URL.

        Raises:
            ConfigError: SQLite in a folder that is not local.
        """
        url = self.database
        if not url.startswith(_SQLITE) or url.startswith(f"{_SQLITE}/"):
            return url
        if not location.is_local:
            raise ConfigError(
                f"{location.uri}: SQLite needs a disk of this machine",
                "Name a local folder, or a PostgreSQL database.",
            )
        return f"{_SQLITE}{location.local_path.absolute() / url.removeprefix(_SQLITE)}"
