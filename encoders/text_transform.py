"""Text to the ids of its pieces, over a `tokenizers` file or a vocabulary of the catalogue's own.

    str | {field: str} -TextTransform-> (L,) int64 -collate-> token_ids, mask (M, L), present (M,)

Legend: M items, L pieces of the longest text in the batch.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from encoders.encoder import Inputs, fingerprint


def train_vocabulary(texts: Iterable[str], size: int = 8000) -> str:
    """Learn a vocabulary of word pieces from texts and return it as tokenizer JSON.

    Byte-pair merges without a prefix for continuing pieces: with such a prefix the library numbers
    the pieces in the order of a hash map, and the same texts give another vocabulary in each run.

    Args:
        texts: the texts of the catalogue.
        size: the largest number of pieces, special ones included.

    Returns:
        The JSON document that `TextTransform` takes; equal texts in equal order give equal JSON.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["[PAD]", "[UNK]"], show_progress=False, min_frequency=2
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str()


class TextTransform:
    """Cuts a text into the ids of its pieces."""

    def __init__(self, tokenizer_json: str, *, max_length: int = 256, max_chunks: int = 1) -> None:
        """Read the tokeniser.

        Args:
            tokenizer_json: content of a tokenizer.json.
            max_length: pieces of a chunk, special ones included.
            max_chunks: chunks kept of a text; what is longer is cut off behind them. Each has its
                own special pieces.
        """
        self.max_length, self.max_chunks = max_length, max_chunks
        self.tokenizer_json = tokenizer_json
        self.tokenizer = Tokenizer.from_str(tokenizer_json)
        self.pad_id = _pad_id(self.tokenizer)
        # The file may carry its own: MiniLM's pads every text to 128 pieces and cuts it there.
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(max_length)

    @classmethod
    def from_folder(cls, folder: Path | str, *, max_length: int = 256) -> Self:
        """Read `tokenizer.json` of a folder of weights.

        Raises:
            ValueError: the folder has no such file.
        """
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise ValueError(f"no tokenizer.json in {folder}: a text encoder's folder needs one")
        return cls(path.read_text(encoding="utf-8"), max_length=max_length)

    @property
    def vocabulary_size(self) -> int:
        """Number of ids, special ones included."""
        return int(self.tokenizer.get_vocab_size())

    def __call__(self, text: str | Mapping[str, str]) -> Tensor | None:
        """Return the ids of one text, (L,) int64, or None for an empty text.

        L is at most max_length * max_chunks, and every chunk but the last has max_length.

        Args:
            text: a string, or the fields of an item in order, which are joined as sentences.
        """
        fields = [text] if isinstance(text, str) else list(text.values())
        joined = ". ".join(field.strip() for field in fields if field.strip())
        ids: list[int] = []
        if joined:
            first = self.tokenizer.encode(joined)
            for chunk in [first, *first.overflowing][: self.max_chunks]:
                ids += chunk.ids
        return torch.tensor(ids, dtype=torch.int64) if ids else None

    def collate(self, samples: Sequence[Tensor | None]) -> Inputs:
        """Pad samples on the right to the longest.

        Returns:
            token_ids (M, L) int64, mask (M, L) bool, present (M,) bool.
        """
        longest = max((len(sample) for sample in samples if sample is not None), default=1)
        token_ids = torch.full((len(samples), longest), self.pad_id, dtype=torch.int64)
        mask = torch.zeros(len(samples), longest, dtype=torch.bool)
        for row, sample in enumerate(samples):
            if sample is not None:
                token_ids[row, : len(sample)] = sample
                mask[row, : len(sample)] = True
        return {"token_ids": token_ids, "mask": mask, "present": mask.any(dim=1)}

    def fingerprint(self) -> str:
        """Return the sha256 of the tokeniser and the length."""
        arguments = {"transform": "text", "json": self.tokenizer_json, "length": self.max_length}
        if self.max_chunks > 1:
            arguments["chunks"] = self.max_chunks
        return fingerprint(arguments)


def _pad_id(tokenizer: Tokenizer) -> int:
    if tokenizer.padding is not None:
        return int(tokenizer.padding["pad_id"])
    candidates = (tokenizer.token_to_id(piece) for piece in ("[PAD]", "<pad>"))
    return next((found for found in candidates if found is not None), 0)
