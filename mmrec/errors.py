"""What can go wrong, as a tree; the command line turns every UserError into one line and status 2.

MmrecError
├── UserError              the caller's fault: the message is the one line shown
│   ├── ConfigError        a setting is unknown, of a wrong type or contradicts another
│   ├── ItemNotFound       none of the ids given is known
│   ├── CheckpointMismatch a run, its data and the request do not belong together
│   ├── WeightsError       weights are missing, damaged or not of a known kind
│   └── MediaError         too many media cannot be read
└── NonFiniteLoss          training met NaN or infinity
"""

from __future__ import annotations


class MmrecError(Exception):
    """Root of the errors that mmrec raises on purpose."""


class UserError(MmrecError):
    """Something the caller can mend; its message is one line."""


class ConfigError(UserError):
    """A setting is unknown, of a wrong type, or contradicts another."""


class ItemNotFound(UserError):
    """None of the given ids is known."""


class CheckpointMismatch(UserError):
    """A run, its data and the request do not belong together."""


class WeightsError(UserError):
    """Weights are missing, damaged or not of a known kind."""


class MediaError(UserError):
    """More media are broken than the settings allow."""


class NonFiniteLoss(MmrecError):
    """The loss or its gradient is NaN or infinite."""
