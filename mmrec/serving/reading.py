"""What of a request the model reads before its turn comes: texts and queries, encoding thread."""

from __future__ import annotations

from mmrec.retrieval.content import encode_queries
from mmrec.retrieval.search import Query, Way
from mmrec.serving.live import Live
from mmrec.serving.questions import Encoded


def read_text(live: Live, text: str) -> Encoded:
    """A text as an item's content.

    Raises:
        UserError: the model reads no text.
    """
    content = encode_queries(live.retriever, "text", [text])[0]
    return Encoded(live.model_hash, content, ["text"])


def read_query(live: Live, query: Query, by: Way = "hybrid") -> Encoded | None:
    """The content of a query, None where words alone count; the items' words are read as well.

    Raises:
        UserError: the model cannot read what is given, and words are not enough.
        DataError: a file is no picture or sound.
    """
    if by != "dense":
        live.read_words()
    content = live.searcher.content(query, by)
    return None if content is None else Encoded(live.model_hash, content, [])
