"""Text to tokens: a transform over a `tokenizers` file, BERT-like encoders, and a small one.

    str | {field: str} -TextTransform-> (L,) int64 -collate-> token_ids, mask (M, L), present (M,)
    -below-> states (M, 32, W) -above-> tokens (M, 32, W)

Legend: M items, L pieces of the longest text in the batch, T tokens kept, W width.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from encoders.cut import StackedEncoder
from encoders.encoder import Inputs, fingerprint
from encoders.tokens import Tokens, masked, pool_tokens

# Families whose forward is: embeddings, a list of layers, nothing after the last layer.
STACKED_FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert")

TextStates = tuple[Tensor, Tensor]
"""States (M, L, W) between two blocks, and which of them are real (M, L) bool."""


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


class TextEncoder(StackedEncoder):
    """A text model of `transformers`, without its pooler; the cut at 0 lies after its last layer.

    BERT and its kin end in the norm of their last layer, so nothing is left above that cut. GPT-2
    and its kin (causal models) are taken whole.
    """

    modality = "text"
    is_transformer = True
    model: Any  # the classes of transformers share no type that names what is used here

    def __init__(
        self,
        model: Any,
        *,
        num_tokens: int = 32,
        max_length: int | None = None,
        max_chunks: int = 1,
    ) -> None:
        """Wrap a bidirectional or a causal model of `transformers`.

        Args:
            model: what AutoModel returns.
            num_tokens: tokens kept of a text.
            max_length: most pieces of a chunk; None: as many as the model has positions for.
            max_chunks: most chunks of a text; they are read one by one and pooled together.

        Raises:
            ValueError: the model is an encoder with a decoder; those are not supported.
        """
        super().__init__()
        config = model.config
        if config.is_encoder_decoder:
            raise ValueError(
                f"text model of type '{config.model_type}' is an encoder with a decoder; use one "
                "of the two alone: BERT and its kin, or GPT-2 and its kin"
            )
        self.is_causal = _is_causal(model)
        if hasattr(model, "pooler"):
            model.pooler = None  # not used here, and a parameter without gradient stalls DDP
        self.model = model
        self.num_tokens = num_tokens
        self.width = self.last_width = int(config.hidden_size)
        # RoBERTa counts positions from pad_token_id + 1, so two of its 514 rows are never reached
        offset = config.pad_token_id + 1 if "roberta" in config.model_type else 0
        positions = int(getattr(config, "max_position_embeddings", 1 << 30)) - offset
        self.max_length = min(positions, max_length or positions)
        self.max_chunks = max_chunks

    @classmethod
    def from_folder(
        cls,
        folder: Path | str,
        *,
        num_tokens: int = 32,
        max_length: int | None = None,
        max_chunks: int = 1,
    ) -> Self:
        """Load config.json and model.safetensors of a folder, or a model of the hub by its name.

        Raises:
            ValueError: the folder does not hold them.
        """
        from transformers import AutoModel

        try:
            model = AutoModel.from_pretrained(
                str(folder), dtype=torch.float32, use_safetensors=True, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"cannot load a text model from '{folder}': {reason}") from error
        return cls(
            model.eval(), num_tokens=num_tokens, max_length=max_length, max_chunks=max_chunks
        )

    @property
    def stack(self) -> list[nn.Module]:
        """The layers; empty for a family whose forward is not known here."""
        if self.model.config.model_type not in STACKED_FAMILIES:
            return []
        has_encoder = hasattr(self.model, "encoder")  # DistilBERT calls it transformer
        return list((self.model.encoder if has_encoder else self.model.transformer).layer)

    @property
    def end(self) -> list[nn.Module]:
        """Nothing: the last layer ends in its norm."""
        return []

    def begin(self, inputs: Inputs) -> TextStates:
        """Embed the pieces; a family that is taken whole runs here.

        Raises:
            ValueError: a text has more pieces than the model has positions for.
        """
        _check_length(inputs["token_ids"], self.max_length * self.max_chunks)
        return self._by_chunk(self._embed, inputs["token_ids"], inputs["mask"]), inputs["mask"]

    def _embed(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        if self.stack:
            embedded: Tensor = self.model.embeddings(input_ids=token_ids)
            return embedded
        # counted from the first real piece, on whichever side the padding stands
        places = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if self.is_causal else {}
        whole = self.model(input_ids=token_ids, attention_mask=mask.long(), **places)
        last: Tensor = whole.last_hidden_state
        return last

    def _by_chunk(
        self, read: Callable[[Tensor, Tensor], Tensor], pieces: Tensor, mask: Tensor
    ) -> Tensor:
        """Let a part of the model read each chunk of each text by itself.

        Args:
            read: pieces (R, L, …) and their mask (R, L) to states (R, L, W).
            pieces: (M, T, …), chunks of max_length one after the other.
            mask: (M, T).

        Returns:
            (M, T, W).
        """
        M, T = mask.shape
        if self.max_length >= T:
            return read(pieces, mask)
        chunks = -(-T // self.max_length)
        missing = chunks * self.max_length - T
        rest = [0, 0] * (pieces.ndim - 2)  # of the axes behind T
        rows = nn.functional.pad(pieces, (*rest, 0, missing)).unflatten(1, (chunks, -1))
        real = nn.functional.pad(mask, (0, missing)).unflatten(1, (chunks, -1))
        rows, real = rows.flatten(0, 1), real.flatten(0, 1)
        kept = real.any(1).nonzero().squeeze(1)  # a text may have fewer chunks than the longest
        states = read(rows[kept], real[kept])
        whole = states.new_zeros(M * chunks, *states.shape[1:]).index_copy(0, kept, states)
        return whole.unflatten(0, (M, chunks)).flatten(1, 2)[:, :T]

    def run(self, states: TextStates, start: int, stop: int) -> TextStates:
        """Pass states through the layers [start, stop)."""
        from transformers.masking_utils import create_bidirectional_mask

        def read(values: Tensor, mask: Tensor) -> Tensor:
            attended = None
            if not values.is_meta:  # a model of shapes alone; making the mask looks at values
                attended = create_bidirectional_mask(
                    config=self.model.config, inputs_embeds=values, attention_mask=mask.long()
                )
            for block in self.stack[start:stop]:
                values = block(values, attended)
            return values

        values, mask = states
        return states if start == stop else (self._by_chunk(read, values, mask), mask)

    def pool(self, states: TextStates) -> Tokens:
        """Pool to num_tokens: as many real ones as the text has pieces, up to that.

        Of a causal model the last piece's state, which alone has read the whole text, is kept as
        it is, behind the pooled others.
        """
        if self.is_causal:
            return pool_before_last(masked(*states), self.num_tokens)
        return pool_tokens(masked(*states), self.num_tokens)

    def pack(self, states: TextStates) -> Tokens:
        """Return the states of the pieces."""
        return masked(*states)

    def unpack(self, states: Tokens) -> TextStates:
        """Return the states of the pieces."""
        return states.values, states.mask

    def extend(self, states: TextStates, extra: Tensor) -> TextStates:
        """Put tokens (P, W) behind those of each item; of a text in chunks the last would see them.

        So `encoders.adapters` refuses a prompt there.
        """
        return _extend(states, extra)

    def shorten(self, states: TextStates, num_tokens: int) -> TextStates:
        """Take the last tokens away again."""
        return states[0][:, :-num_tokens], states[1][:, :-num_tokens]

    def largest_inputs(self) -> Inputs:
        """Return a text of as many pieces as are read."""
        return _longest_text(self.max_length * self.max_chunks)

    def pooled(self, tokens: Tokens) -> Tensor:
        """Return the mean over tokens, (M, width), as sentence encoders such as MiniLM use.

        Equal to the mean over all pieces up to num_tokens pieces; of longer texts, the mean of
        near-equal bins. Of a causal model the last token; zeros where an item has none.
        """
        if not self.is_causal:
            return tokens.pooled()
        last = (tokens.mask.sum(1) - 1).clamp(min=0)
        return tokens.values[torch.arange(len(last), device=last.device), last]

    def arguments(self) -> dict[str, Any]:
        """Return the configuration of the model and the number of tokens."""
        config = self.model.config.to_diff_dict()
        # what loading adds and building from a config does not: the weights are the same
        for name in ("transformers_version", "dtype", "_name_or_path"):
            config.pop(name, None)
        return {"encoder": "text", "config": config, "tokens": self.num_tokens}


def pool_before_last(tokens: Tokens, num_tokens: int) -> Tokens:
    """Keep the last real token of each row as it is, and pool those before it.

    Args:
        tokens: (M, T, W); real ones may stand anywhere in a row.
        num_tokens: K, at least 1.

    Returns:
        Tokens (M, K, W): up to K - 1 pooled ones, then the last.
    """
    M, T, W = tokens.values.shape
    place = torch.arange(T, device=tokens.mask.device)
    last = (tokens.mask * (place + 1)).argmax(1)  # 0 where a row has none, which stays masked
    rows = torch.arange(M, device=last.device)
    values = tokens.values[rows, last].unsqueeze(1)  # (M, 1, W)
    present = tokens.mask.any(1)
    if num_tokens == 1:
        return masked(values, present.unsqueeze(1))
    before = pool_tokens(
        Tokens(tokens.values, tokens.mask & (place != last.unsqueeze(1))), num_tokens - 1
    )
    count = before.mask.sum(1)  # where the last one goes
    slots = torch.arange(num_tokens, device=last.device)
    padded = nn.functional.pad(before.values, (0, 0, 0, 1))
    joined = torch.where((slots == count.unsqueeze(1)).unsqueeze(-1), values, padded)
    return masked(joined, (slots <= count.unsqueeze(1)) & present.unsqueeze(1))


def _check_length(token_ids: Tensor, max_length: int) -> None:
    if token_ids.shape[1] > max_length:
        raise ValueError(
            f"texts of {token_ids.shape[1]} pieces, but the text encoder takes at most "
            f"{max_length}: lower max_length of the text transform"
        )


def _extend(states: TextStates, extra: Tensor) -> TextStates:
    values, mask = states
    rows = extra.to(values.dtype).expand(len(values), -1, -1)
    real = mask.new_ones(len(values), len(extra))
    return torch.cat([values, rows], dim=1), torch.cat([mask, real], dim=1)


def _longest_text(max_length: int) -> Inputs:
    token_ids = torch.zeros(1, max_length, dtype=torch.int64)
    return {"token_ids": token_ids, "mask": token_ids == 0, "present": torch.tensor([True])}


def _is_causal(model: Any) -> bool:
    """Tell whether the first state ignores the second token; no field of a config says so."""
    training = model.training
    with torch.no_grad():
        token_ids = torch.tensor([[1, 1], [1, 2]], device=model.device)
        first, second = model.eval()(input_ids=token_ids).last_hidden_state
    model.train(training)
    return not first.is_meta and torch.equal(first[0], second[0])


class SmallTextEncoder(StackedEncoder):
    """A small transformer to train from scratch over a vocabulary of the catalogue's own."""

    modality = "text"
    is_transformer = True

    def __init__(
        self,
        *,
        vocabulary_size: int,
        width: int = 128,
        num_layers: int = 2,
        num_heads: int = 4,
        max_length: int = 256,
        dropout: float = 0.1,
        num_tokens: int = 32,
    ) -> None:
        """Make random weights from torch's generator.

        Args:
            vocabulary_size: ids of the transform's tokeniser.
            width: of a token.
            num_layers: blocks of attention and feed-forward.
            num_heads: must divide width.
            max_length: positions.
            dropout: on the embeddings and on what each block adds.
            num_tokens: tokens kept of a text.
        """
        super().__init__()
        self.width = self.last_width = width
        self.num_tokens = num_tokens
        self.max_length = max_length
        self.pieces = nn.Embedding(vocabulary_size, width)
        self.positions = nn.Embedding(max_length, width)
        nn.init.normal_(self.pieces.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            TextBlock(width=width, num_heads=num_heads, dropout=dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width)

    @property
    def stack(self) -> list[nn.Module]:
        """The blocks."""
        return list(self.blocks)

    @property
    def end(self) -> list[nn.Module]:
        """The final norm."""
        return [self.norm]

    def begin(self, inputs: Inputs) -> TextStates:
        """Embed the pieces.

        Raises:
            ValueError: a text has more than max_length pieces.
        """
        token_ids = inputs["token_ids"]
        _check_length(token_ids, self.max_length)
        positions = torch.arange(token_ids.shape[1], device=token_ids.device)
        return self.dropout(self.pieces(token_ids) + self.positions(positions)), inputs["mask"]

    def run(self, states: TextStates, start: int, stop: int) -> TextStates:
        """Pass states through the blocks [start, stop)."""
        values, mask = states
        for block in self.stack[start:stop]:
            values = block(values, mask)
        return values, mask

    def pool(self, states: TextStates) -> Tokens:
        """Pool to num_tokens, before the final norm."""
        return pool_tokens(masked(*states), self.num_tokens)

    def finish(self, values: Tensor) -> Tensor:
        """Apply the final norm."""
        normed: Tensor = self.norm(values)
        return normed

    def pack(self, states: TextStates) -> Tokens:
        """Return the states of the pieces."""
        return masked(*states)

    def unpack(self, states: Tokens) -> TextStates:
        """Return the states of the pieces."""
        return states.values, states.mask

    def extend(self, states: TextStates, extra: Tensor) -> TextStates:
        """Put tokens (P, W) behind those of each item."""
        return _extend(states, extra)

    def shorten(self, states: TextStates, num_tokens: int) -> TextStates:
        """Take the last tokens away again."""
        return states[0][:, :-num_tokens], states[1][:, :-num_tokens]

    def largest_inputs(self) -> Inputs:
        """Return a text of max_length pieces."""
        return _longest_text(self.max_length)

    def pooled(self, tokens: Tokens) -> Tensor:
        """Return the mean over tokens, (M, width)."""
        return tokens.pooled()

    def arguments(self) -> dict[str, Any]:
        """Return the heads of each block and the number of tokens."""
        heads = [block.num_heads for block in self.blocks if isinstance(block, TextBlock)]
        return {"encoder": "small-text", "heads": heads, "tokens": self.num_tokens}


class TextBlock(nn.Module):
    """Pre-norm self-attention and feed-forward over the real tokens."""

    def __init__(self, *, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"num_heads {num_heads} does not divide the text width {width}")
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Map states (M, L, W) with mask (M, L) bool to (M, L, W)."""
        M, L, W = states.shape
        split = self.query_key_value(self.attention_norm(states)).view(M, L, 3, self.num_heads, -1)
        query, key, value = split.permute(2, 0, 3, 1, 4)  # (M, L, 3, H, W/H) -> 3 x (M, H, L, W/H)
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
        mixed = mixed.transpose(1, 2).reshape(M, L, W)  # (M, H, L, W/H) -> (M, L, W)
        states = states + self.dropout(self.output(mixed))
        added: Tensor = self.dropout(self.feed_forward(states))
        return states + added
