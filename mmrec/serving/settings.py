"""Settings of the service: where it listens, what it serves, and how much it takes.

They travel to the workers as one JSON document in an environment variable, so that every worker
starts from the same ones.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mmrec.errors import ConfigError

SETTINGS_VARIABLE = "MMREC_SERVICE_SETTINGS"
MIB = 2**20
LogLists = Literal["sure", "later", "off"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Limits(_Section):
    """What one request may bring; whatever is above is refused before it is decoded."""

    max_json_bytes: int = Field(MIB, ge=1024)
    """Of the body of a JSON request."""
    max_upload_bytes: int = Field(64 * MIB, ge=1024)
    """Of the body of a request with media, all of them together."""
    max_media: int = Field(8, ge=1)
    """Files in one request."""
    max_text_bytes: int = Field(64 * 1024, ge=1)
    """Of one text of an item."""
    max_pixels: int = Field(40_000_000, ge=16)
    """Of a picture or a frame, as its header says: 120 MB once decoded."""
    max_side: int = Field(20_000, ge=4)
    """Pixels of a picture's longer side."""
    max_audio_s: float = Field(1800.0, gt=0)
    """Seconds of a sound, as its header says; one that does not say is refused."""
    body_timeout_s: float = Field(30.0, gt=0)
    """Seconds within which a body must have arrived."""


class ServiceSettings(_Section):
    """A service as `mmrec serve` starts it."""

    path: Path
    """Folder of a run or a bundle."""
    data: Path | None = None
    """The prepared folder, where it has moved."""
    models: Path | None = None
    """Folder whose sub-folders may be swapped in by name; none: the model stays."""
    database: str
    """URL of the database of events and added items."""
    keys: Path | None = None
    """File of API keys; none: whoever reaches the port may do everything."""
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    workers: int = Field(1, ge=1)
    max_batch: int = Field(32, ge=1)
    """Requests for lists that the model answers together."""
    max_waiting: int = Field(64, ge=1)
    """Requests that wait for the model; more are told to come again (429)."""
    max_wait_s: float = Field(2.0, gt=0)
    """Seconds that a request may wait for the model, its own batch not counted; what would wait
    longer is told to come again (429). On a machine that is quick, `max_waiting` holds before."""
    max_encoding: int = Field(8, ge=1)
    """Items that wait to be encoded; more are told to come again (429)."""
    timeout_s: float = Field(5.0, gt=0)
    """Seconds a list may take, waiting included."""
    encode_timeout_s: float = Field(60.0, gt=0)
    """Seconds the encoding of an item may take, waiting included."""
    log_lists: LogLists = "sure"
    """Whether lists to users are kept in the log of shown lists. `sure`: an answer that has a
    request_id is sent once its list is on disk, many in a transaction, off the model's thread.
    `later`: written after the answer, so that a worker that is killed loses the last ones. `off`:
    none is."""
    log_lists_days: float = Field(90.0, ge=0)
    """Days after which a shown list is forgotten."""
    explore: float = Field(0.0, ge=0, le=1)
    """Probability with which a place of a user's list shows one of the next candidates; 0: lists
    are the model's own. The log says with which probability each item stood at its place."""
    explore_next: int = Field(20, ge=1, le=1000)
    """Candidates behind a list that a place may be explored with."""
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _explored_lists_are_logged(self) -> ServiceSettings:
        if self.explore and self.log_lists == "off":
            raise ConfigError(
                f"--explore is {self.explore:g} and --log-lists is off: what is explored is of use "
                "where it is logged; give --log-lists sure or later, or drop --explore"
            )
        return self

    @model_validator(mode="after")
    def _keys_where_others_can_reach(self) -> ServiceSettings:
        if self.keys is None and not is_loopback(self.host):
            raise ConfigError(
                f"--host is '{self.host}', which others can reach, and there are no keys: give "
                "--keys FILE (mmrec keys add makes one), or listen on 127.0.0.1"
            )
        return self


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def default_database(path: Path) -> str:
    """URL of the SQLite file beside a run or a bundle: `RUN/service.sqlite`."""
    return f"sqlite:///{path.resolve() / 'service.sqlite'}"
