"""What requests and answers look like: the types behind the service's OpenAPI, with examples.

They need no model, so that a caller's program has them too; `mmrec.serving.asked` turns them into
what the library takes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    model_validator,
)

MAX_HISTORY, MAX_K, MAX_TEXT = 1000, 1000, 10_000

_ONE_LINE = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]+$"
"""Without control characters, and without the two signs that end a line or a paragraph."""
Id = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=_ONE_LINE)]
RequestId = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=_ONE_LINE)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT, pattern=r"^[^\x00]+$")]
FieldText = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]
Number = Annotated[float, Field(ge=-1e15, le=1e15, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)]
Value = Number | Id | list[Id]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class HistoryItem(_Strict):
    """An event of a history."""

    item_id: Id
    event: Id | None = Field(None, description="Type, as in the log: bought, viewed.")
    time: Seconds | None = Field(None, description="Unix seconds.")
    value: Number | None = Field(None, description="A rating, the share that was watched.")


HistoryEntry = Annotated[
    Annotated[Id, Tag("as_id")] | Annotated[HistoryItem, Tag("as_event")],
    Discriminator(lambda entry: "as_id" if isinstance(entry, str) else "as_event"),
]
HistoryList = Annotated[
    list[HistoryEntry],
    Field(max_length=MAX_HISTORY, description="Oldest first: ids, or events.", examples=[["1"]]),
]


class AskedCondition(_Strict):
    """A condition that every listed item fulfils."""

    field: Id
    minimum: Number | None = None
    maximum: Number | None = None
    any_of: list[Id] = Field([], max_length=100)
    none_of: list[Id] = Field([], max_length=100)


class AskedPreference(_Strict):
    """A soft wish: what has more of something comes sooner."""

    field: Id
    values: list[Id] = Field([], max_length=100)
    less: bool = False
    strength: float = Field(1.0, gt=0, le=100, allow_inf_nan=False)


class AskedWishes(_Strict):
    """What a list is to be like."""

    where: list[AskedCondition] = Field([], max_length=20)
    without: list[Id] = Field([], max_length=MAX_HISTORY, description="Items not to be listed.")
    prefer: list[AskedPreference] = Field([], max_length=20)
    at_least: Number | None = Field(None, description="Least score of a listed item.")
    half_life_hours: float | None = Field(None, gt=0, le=1e9, description="Newer ones first.")
    novelty: float = Field(
        0.0, ge=0, le=100, allow_inf_nan=False, description="Items that few have met sooner."
    )
    unmet: bool = Field(False, description="Items of the catalogue that nobody met, as well.")
    diversity: float = Field(0.0, ge=0, le=1)
    diversify_by: Literal["mmr", "dpp"] = "mmr"
    max_per: dict[Id, Annotated[int, Field(ge=1, le=MAX_K)]] = Field({}, max_length=10)
    probabilities: bool = False
    num_similar: int = Field(0, ge=0, le=20)
    why: Literal["en", "zh"] | None = Field(None, description="Say why each item is listed.")


class _ListRequest(_Strict):
    k: int = Field(10, ge=1, le=MAX_K, description="How many items.")
    time: Seconds | None = Field(None, description="Unix seconds of the request; none: now.")
    wishes: AskedWishes = AskedWishes()


class RecommendRequest(_ListRequest):
    """Who asks: a user by id, or by what he met, likes and is."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"user_id": "42", "k": 5},
                {"history": ["2571", {"item_id": "260", "time": 978300760}], "k": 5},
                {"user_id": "42", "k": 5, "ranked": False},
                {"user_id": "42", "query": "a ship", "mix": 0.3, "k": 5},
            ]
        }
    )

    user_id: Id | None = None
    history: HistoryList | None = None
    taste: Text | None = Field(None, description="What the user says he likes.")
    attributes: dict[Id, Value] | None = Field(None, max_length=100)
    context: dict[Id, Id] = Field({}, max_length=100, description="Device, place.")
    query: Text | None = Field(
        None,
        description="What the user looks for now: the list holds what its words and its meaning "
        "find, without what he has met, in an order that he likes. Refused with `ranked`, "
        "`calibrated`, and with `why` and `num_similar` of the wishes, unless mix is 1.",
    )
    mix: float = Field(
        0.5,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="With query, weight of what he likes: 0 is the query alone, 1 his list as if "
        "there were no query.",
    )
    ranked: bool | None = Field(
        None,
        description="Order by the second stage (true) or by retrieval alone (false); unasked, by "
        "the second stage where it was better on validation than chance.",
    )
    calibrated: bool = Field(
        False,
        description="Tell the second stage's calibrated probabilities, in `heads`; refused where "
        "the log does not say what was shown and not taken.",
    )
    keep: bool = Field(
        False,
        description="Keep what is shown to the user (user_id) and at which place, as events of "
        "type 'shown': they do not count as met, and `mmrec events` writes them.",
    )


class SimilarRequest(_ListRequest):
    """Items like an item or a text."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"item_id": "260", "k": 5}]})

    item_id: Id | None = None
    text: Text | None = None
    by: Id | None = Field(
        None, description="With item_id: the one modality that is compared, such as image."
    )


class _SearchRequest(_ListRequest):
    by: Literal["hybrid", "lexical", "dense"] = Field(
        "hybrid", description="Words and meaning (hybrid), words alone, or meaning alone (dense)."
    )
    user_id: Id | None = Field(None, description="Whose taste orders what is found.")
    history: HistoryList | None = Field(None, description="The same, in place of a user.")
    mix: float = Field(
        0.5,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="With user_id or history, weight of the taste: 0 is the search alone, 1 what "
        "is recommended.",
    )


class SearchRequest(_SearchRequest):
    """Items that a text asks for, by its words and by its meaning."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"text": "a ship wakes its crew", "k": 5},
                {"text": "ship", "by": "lexical", "k": 5},
                {"text": "a ship", "user_id": "42", "mix": 0.3, "k": 5},
            ]
        }
    )

    text: Text


class MediaSearchRequest(_SearchRequest):
    """Items that a picture or a sound asks for, or both, or either with a text."""

    text: Text | None = None


class EmbedRequest(_Strict):
    """Vectors of items of the catalogue, of users behind histories, or of texts."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"item_ids": ["260", "2571"]}]})

    item_ids: list[Id] = Field([], max_length=1000)
    histories: list[Annotated[HistoryList, Field(min_length=1)]] = Field([], max_length=100)
    texts: list[Text] = Field([], max_length=32)

    @model_validator(mode="after")
    def _asks_for_something(self) -> EmbedRequest:
        if not (self.item_ids or self.histories or self.texts):
            raise ValueError("asks for nothing, give one or more of item_ids, histories, texts")
        return self


class GivenEvent(_Strict):
    """Something a user did."""

    user_id: Id
    item_id: Id
    event: Id | None = Field(None, description="Type, as in the log.")
    value: Number | None = None
    time: Seconds | None = Field(None, description="Unix seconds; none: now.")
    context: dict[Id, Id] = Field({}, max_length=100)
    request_id: RequestId | None = Field(
        None,
        description="Of the list that it answers, as the list's answer has it: the event counts "
        "for the model that made the list.",
    )
    event_id: Id | None = Field(
        None, description="Of the caller: an event sent twice counts once. None: one is made."
    )


class EventsRequest(_Strict):
    """Events, oldest first."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"events": [{"user_id": "42", "item_id": "260", "event_id": "e-1"}]}]
        }
    )

    events: list[GivenEvent] = Field(min_length=1, max_length=1000)


class ModelRequest(_Strict):
    """The version that is to answer from now on."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"version": "run-2"}]})

    version: Annotated[
        str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    ] = Field(description="Name of a folder in --models.")


class EventReason(_Strict):
    """An event of the history, and what the score would lose without it."""

    item_id: str
    title: str | None
    ago: int = Field(description="Events back from the last one, which is 0.")
    drop: float
    similarity: float | None
    shared: dict[str, list[str]] = Field(description="Values that both items have, by attribute.")


class PartReason(_Strict):
    """A medium of the item, or what was learnt from users, and its part of the score."""

    drop: float
    share: float


class Reason(_Strict):
    """Why an item is listed: differences of the model's own scores."""

    score: float
    popularity: float
    events: list[EventReason]
    parts: dict[str, PartReason]
    words: str


class ListedItem(_Strict):
    """An item of a list."""

    rank: int
    item_id: str
    score: float
    title: str | None
    basis: str
    probability: float | None = None
    similar: list[ListedItem] = []
    why: Reason | None = None
    found_by: Literal["text", "meaning", "both"] | None = Field(
        None, description="Of a search: its words, its content, or both answer the query."
    )
    retrieval_rank: int | None = Field(
        None, description="Of a list that the second stage has ordered: its place before."
    )
    heads: dict[str, float] = Field(
        {}, description="What the second stage tells: values, and calibrated probabilities."
    )


class _Answer(_Strict):
    model: str | None = Field(description="Hash of the model; none where none answered.")
    degraded: list[Literal["model", "database"]] = Field(
        [],
        description="What was out of order: model - popularity answered in its place; "
        "database - the newest events and items may be missing.",
    )


class ListAnswer(_Answer):
    """A list, best first."""

    basis: str | None = Field(description="What it was made from; none of an empty list.")
    list_id: str | None = Field(None, description="Of a list that was kept.")
    request_id: str | None = Field(
        None,
        description="Of a list to a user that is in the log of shown lists; events may name it.",
    )
    items: list[ListedItem]


class UserScore(_Strict):
    """How a user would like an item."""

    user_id: str
    score: float = Field(description="Cosine.")
    rank: int = Field(description="Among his unseen candidates and this item, from 1.")
    confidence: float | None = Field(
        None,
        description="Of one who met the item and one who did not, the chance that this user is the "
        "one who did, by this score and what the item has; null: not known.",
    )


class ScoreAnswer(_Answer):
    """How users would like a new item, best first."""

    modalities: list[str]
    users: list[UserScore]


class ItemAnswer(_Answer):
    """An item that was added."""

    item_id: str
    modalities: list[str]
    created: bool = Field(description="False: the very same item was there already.")


class ListedRequest(_Strict):
    """Whether an item is to be listed, and attributes that have changed; at least one of both."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"listed": False}]})

    listed: bool | None = Field(
        None, description="False: out of stock, withdrawn. True: there again. None: as it is."
    )
    attributes: dict[Id, Value | None] = Field(
        {},
        max_length=100,
        description="New values, such as a price, for the conditions and wishes of lists; null: "
        "not known any more. The model's vectors stay as they are.",
    )

    @model_validator(mode="after")
    def _says_something(self) -> ListedRequest:
        if self.listed is None and not self.attributes:
            raise ValueError("give listed, attributes, or both")
        return self


class ListedAnswer(_Strict):
    """Whether an item is listed from now on."""

    item_id: str
    listed: bool
    changed: bool = Field(description="False: so it was already, and no attribute was given.")


class EmbedAnswer(_Answer):
    """Vectors in the order of the request."""

    items: list[ItemVectors] = []
    users: list[list[float]] = []
    texts: list[list[float]] = []


class ItemVectors(_Strict):
    """Vectors of an item."""

    item_id: str
    embedding: list[float]
    content: list[float] | None = None
    modalities: list[str] = []


class EventsAnswer(_Strict):
    """What became of events; they are on disk once this is sent."""

    accepted: int
    known: int = Field(description="Had been sent before, by their event_id.")


class ModelAnswer(_Strict):
    """The version that answers."""

    version: str
    model: str


class State(_Strict):
    """How a worker is."""

    status: Literal["ok", "degraded", "unavailable"]
    model: str | None = None
    version: str | None = None
    num_items: int = 0
    num_added: int = 0
    reasons: list[str] = []


class ErrorDetail(_Strict):
    """What is wrong with a request."""

    code: str
    message: str
    field: str | None


class ErrorAnswer(_Strict):
    """A request that was refused."""

    error: ErrorDetail


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in {
        400: "The body cannot be read",
        401: "No valid key",
        403: "The key may not do this",
        404: "No such item",
        413: "The body is too large",
        415: "Another content type is wanted",
        422: "A field is wrong",
        429: "Too many requests: come again after Retry-After seconds",
        503: "The model or the database is not there",
    }.items()
}
