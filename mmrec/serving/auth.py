"""API keys: a file of hashes, three roles, an end date, and a rate each.

    {"keys": [{"name": "shop", "role": "write", "sha256": "…", "expires": null, "per_minute": 600}]}

A key is 256 random bits, so its plain sha256 cannot be guessed; the key itself is shown once, when
it is made, and kept nowhere. Roles include each other: read < write < admin.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import time
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmrec.errors import ConfigError
from mmrec.serving.faults import Fault

Role = Literal["read", "write", "admin"]
ROLES: tuple[Role, ...] = ("read", "write", "admin")
PREFIX = "mmrec_"
DAY_S = 86_400.0
_BURST_S = 5.0
"""Seconds of its rate that a key may use at once."""


class Key(BaseModel):
    """A key as its file holds it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=100)
    role: Role
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    expires: float | None = None
    """Unix seconds; None: never."""
    per_minute: int = Field(600, ge=1)
    """Requests."""


class _KeyFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: list[Key]


class Keys:
    """Who may do what, how often.

    Args:
        keys: of the file; None: nobody is asked for one.
    """

    def __init__(self, keys: list[Key] | None) -> None:
        self._keys = keys
        self._buckets = {each.name: _Bucket(each.per_minute / 60) for each in keys or ()}

    def allow(self, authorization: str | None, role: Role) -> str | None:
        """Lets a request through; returns the name of its key.

        Args:
            authorization: header, `Bearer KEY`.
            role: that the request needs.

        Raises:
            Fault: 401 without a valid key, 403 with one of a lesser role, 429 beyond its rate.
        """
        found = self.find(authorization)
        if found is None:
            return None
        if ROLES.index(found.role) < ROLES.index(role):
            raise Fault(403, "role", f"the key '{found.name}' may {found.role}, this needs {role}")
        wait_s = self._buckets[found.name].take()
        if wait_s > 0:
            raise Fault(
                429, "rate", f"the key '{found.name}' has {found.per_minute} requests a minute",
                retry_after_s=wait_s,
            )  # fmt: skip
        return found.name

    def find(self, authorization: str | None) -> Key | None:
        """The key of a request; None where nobody is asked for one.

        Args:
            authorization: header, `Bearer KEY`.

        Raises:
            Fault: 401 without a valid key.
        """
        if self._keys is None:
            return None
        scheme, _, given = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not given:
            raise Fault(401, "no_key", "send a key: Authorization: Bearer KEY")
        digest = _sha256(given.strip())
        found: Key | None = None
        for each in self._keys:  # all of them, each in constant time
            if hmac.compare_digest(each.sha256, digest):
                found = each
        if found is None:
            raise Fault(401, "wrong_key", "the key is not known")
        if found.expires is not None and time.time() >= found.expires:
            raise Fault(401, "expired_key", f"the key '{found.name}' has expired")
        return found


class _Bucket:
    """Tokens that come back at an even rate."""

    def __init__(self, rate: float) -> None:
        self._rate, self._most = rate, max(1.0, rate * _BURST_S)
        self._tokens, self._at = self._most, time.monotonic()

    def take(self) -> float:
        """Takes a token; returns the seconds until there is one, 0 where there was."""
        now = time.monotonic()
        self._tokens = min(self._most, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1:
            return (1 - self._tokens) / self._rate
        self._tokens -= 1
        return 0.0


def read_keys(path: Path) -> list[Key]:
    """The keys of a file.

    Raises:
        ConfigError: there is no such file, or it is no file of keys.
    """
    try:
        keys = _KeyFile.model_validate_json(path.read_bytes()).keys
    except OSError as error:
        raise ConfigError(f"--keys {path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"--keys {path}: {place}: {first['msg']}; mmrec keys add writes such a file"
        ) from None
    names = [each.name for each in keys]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"--keys {path}: the name '{twice[0]}' is there twice; names differ")
    return keys


def add_key(path: Path, name: str, role: Role, *, days: float | None, per_minute: int) -> str:
    """Adds a key to a file, which is made where it is absent; returns the key.

    Raises:
        ConfigError: the name is taken, or the file is none of keys.
    """
    keys = read_keys(path) if path.exists() else []
    if name in (each.name for each in keys):
        raise ConfigError(f"{path}: has a key '{name}' already; take another name, or remove it")
    key = PREFIX + secrets.token_urlsafe(32)
    expires = None if days is None else time.time() + days * DAY_S
    keys.append(
        Key(name=name, role=role, sha256=_sha256(key), expires=expires, per_minute=per_minute)
    )
    _write(path, keys)
    return key


def remove_key(path: Path, name: str) -> None:
    """Takes a key out of a file.

    Raises:
        ConfigError: there is no key of this name.
    """
    keys = read_keys(path)
    kept = [each for each in keys if each.name != name]
    if len(kept) == len(keys):
        known = ", ".join(each.name for each in keys) or "none"
        raise ConfigError(f"{path}: has no key '{name}', only {known}")
    _write(path, kept)


def _write(path: Path, keys: list[Key]) -> None:
    aside = path.with_name(f".{path.name}.partial")
    aside.touch(mode=0o600)
    document = {"keys": [each.model_dump() for each in keys]}
    aside.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    os.replace(aside, path)


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
