"""Folders of pretrained weights of encoders, and the text files in them."""

from __future__ import annotations

from pathlib import Path

from mmrec.errors import WeightsError
from mmrec.weights import verify
from mmrec.weights_packages import PACKAGES


def resolve_weights(name: str) -> Path:
    """Folder of weights by an installed name, a path, or the name of a repository on a hub.

    Raises:
        WeightsError: there is none.
    """
    if name in PACKAGES:
        return verify(name)
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise WeightsError(f"weights {name}: not found on the hub: {reason}") from None
    raise WeightsError(
        f"weights {name}: neither an installed name ({', '.join(PACKAGES)}), nor a folder, nor "
        "OWNER/NAME of a hub; see: mmrec weights list"
    )


def read_text(folder: Path, name: str) -> str:
    """The text of a file of such a folder.

    Raises:
        WeightsError: it has none of that name.
    """
    path = folder / name
    if not path.is_file():
        raise WeightsError(f"weights {folder}: there is no {name} in this folder")
    return path.read_text(encoding="utf-8")
