"""The page: its files and headers, the pictures it shows, and its four parts in a browser."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from fastapi.testclient import TestClient
from live_servers import serving
from tiny_run import NO_PICTURE, NUM_USERS

from data_prep.shards import PreparedData
from mmrec.recommender import Recommender
from mmrec.retrieval.export import export_run
from mmrec.serving.app import build_app
from mmrec.serving.auth import add_key
from mmrec.serving.page.page import TYPES
from mmrec.serving.service import Service
from mmrec.serving.settings import ServiceSettings

pytest_plugins = ["tiny_run"]
FOLDER = Path(__file__).resolve().parent.parent / "mmrec" / "serving" / "page"
CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
ODD = "a/b ?#ü"


def settings(path: Path, folder: Path, **more: Any) -> ServiceSettings:
    return ServiceSettings(path=path, database=f"sqlite:///{folder / 'service.sqlite'}", **more)


@pytest.fixture(scope="module")
def address(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(settings(tiny_run, tmp_path_factory.mktemp("page"))) as (address, _):
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=30) as client:
        yield client


def test_every_file_is_served_with_its_type_and_a_strict_policy(client: httpx.Client) -> None:
    assert set(TYPES) == {each.name for each in FOLDER.iterdir() if each.suffix not in (".py", "")}
    for path, name in (("/", "index.html"), *((f"/page/{name}", name) for name in TYPES)):
        answer = client.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == TYPES[name]
        assert answer.content == (FOLDER / name).read_bytes()
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        again = client.get(path, headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304 and not again.content


@pytest.mark.parametrize(
    "path", ["/page/page.py", "/page/..%2Fapp.py", "/page/%2E%2E/app.py", "/page//etc/passwd"]
)
def test_no_other_file_is_served(path: str, client: httpx.Client) -> None:
    answer = client.get(path)
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "not_found"


def test_the_page_names_no_other_address_and_parses_no_text() -> None:
    for name in TYPES:
        text = (FOLDER / name).read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text, name
        assert not [each for each in ("innerHTML", "outerHTML", "insertAdjacent", "document.write",
                                      "localStorage", "sessionStorage", "style=", "onclick=\"")
                    if each in text], name  # fmt: skip


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    digits = colour if len(colour) == 6 else "".join(each * 2 for each in colour)
    shares = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4
              for each in shares]  # fmt: skip
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_contrast_is_that_of_level_aa(scheme: int) -> None:
    blocks = re.findall(r":root \{(.*?)\}", (FOLDER / "page.css").read_text(), re.S)
    colours = dict(re.findall(r"--([a-z-]+): #([0-9a-f]+)", blocks[scheme]))
    text = [("text", "back"), ("text", "face"), ("text", "line"), ("faint", "back"),
            ("faint", "face"), ("accent", "back"), ("on-accent", "accent"), ("error", "back"),
            ("error", "face")]  # fmt: skip
    edges = [("edge", "back"), ("edge", "face"), ("accent", "face")]
    for pairs, least in ((text, 4.5), (edges, 3.0)):
        for one, other in pairs:
            low, high = sorted(luminance(colours[each]) for each in (one, other))
            assert (high + 0.05) / (low + 0.05) >= least, (one, other)


def test_a_picture_is_that_of_the_prepared_folder(client: httpx.Client, tiny_data: Path) -> None:
    items = PreparedData.open(tiny_data).items
    for row in (0, 1, 13):
        answer = client.get(f"/v1/items/i{row}/image")
        assert answer.content == items.read(items.media(row, "image")[0])
        kind = "image/jpeg" if answer.content.startswith(b"\xff\xd8") else "image/png"
        assert answer.headers["content-type"] == kind
        assert answer.headers["cache-control"].startswith("private, max-age=")
    known = {"If-None-Match": answer.headers["etag"]}
    assert client.get("/v1/items/i13/image", headers=known).status_code == 304


def test_an_added_item_has_its_picture_under_any_id(
    client: httpx.Client, tiny_source: Path
) -> None:
    data = (tiny_source / "2.png").read_bytes()
    fields = {"item_id": ODD, "title": "Odd one"}
    added = client.post("/v1/items", data=fields, files={"poster": ("p.png", data, "image/png")})
    assert added.status_code == 200, added.text
    path = f"/v1/items/{quote(ODD, safe='')}"
    assert client.get(f"{path}/image").content == data
    shown = client.get(path).json()
    assert (shown["item_id"], shown["title"], shown["listed"]) == (ODD, "Odd one", True)
    assert client.delete(path).status_code == 200
    assert client.get(path).json()["listed"] is False


def test_where_there_is_no_picture_it_is_said(client: httpx.Client) -> None:
    for item_id in (NO_PICTURE, "nothing"):
        answer = client.get(f"/v1/items/{item_id}/image")
        assert answer.status_code == 404 and answer.json()["error"]["code"] == "not_found"
    found = client.get("/v1/pictures", params={"item_id": ["i0", NO_PICTURE, "nothing"]})
    assert found.json() == {"item_ids": ["i0"]}
    assert client.get("/v1/items/nothing").status_code == 404


def test_a_bundle_shows_added_pictures_alone(
    tiny_run: Path, tiny_source: Path, tmp_path: Path
) -> None:
    export_run(tiny_run, tmp_path / "export", bundle=True)
    service = Service(settings(tmp_path / "export" / "bundle", tmp_path))
    data = (tiny_source / "2.png").read_bytes()
    with TestClient(build_app(service)) as client:
        files = {"poster": ("p.png", data, "image/png")}
        assert client.post("/v1/items", data={"item_id": "n"}, files=files).status_code == 200
        assert client.get("/v1/items/i0/image").status_code == 404
        assert client.get("/v1/items/n/image").content == data


def test_what_there_is_can_be_browsed(client: httpx.Client, tiny_run: Path) -> None:
    catalogue = client.get("/v1/catalogue").json()
    assert (catalogue["text"], catalogue["image"]) == (["title", "plot"], ["poster"])
    assert len(client.get("/v1/users").json()["user_ids"]) == NUM_USERS
    users = client.get("/v1/users", params={"k": 2}).json()["user_ids"]
    retriever = Recommender.load(tiny_run).retriever
    row = retriever.users.index_of(users[1])
    assert row is not None
    expected = [f"i{each}" for each in retriever.users.complete(row).item_index]
    path = f"/v1/users/{users[1]}/history"
    assert [each["item_id"] for each in client.get(path).json()["items"]] == expected
    client.post("/v1/events", json={"events": [{"user_id": users[1], "item_id": "i13"}]})
    found = client.get(path, params={"k": 2}).json()["items"]
    assert [each["item_id"] for each in found] == [expected[-1], "i13"]
    assert client.get("/v1/users/nobody/history").status_code == 404


def test_with_keys_only_the_page_itself_is_open(tiny_run: Path, tmp_path: Path) -> None:
    key = add_key(tmp_path / "keys.json", "one", "read", days=None, per_minute=600)
    service = Service(settings(tiny_run, tmp_path, keys=tmp_path / "keys.json"))
    with TestClient(build_app(service)) as client:
        assert client.get("/").status_code == client.get("/page/page.js").status_code == 200
        paths = ["catalogue", "users", "users/u0/history", "items/i0", "items/i0/image",
                 "pictures?item_id=i0"]  # fmt: skip
        for path in paths:
            assert client.get(f"/v1/{path}").status_code == 401
            sent = client.get(f"/v1/{path}", headers={"Authorization": f"Bearer {key}"})
            assert sent.status_code == 200


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless browser; the test is skipped where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"there is no {CHROMIUM}")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(params=[1280, 390], ids=["desktop", "phone"])
def page(request: pytest.FixtureRequest, browser: Any, address: str) -> Iterator[Any]:
    """The page at two widths; at the end nothing may have gone wrong nor stick out sideways."""
    context = browser.new_context(viewport={"width": request.param, "height": 800})
    page, problems = context.new_page(), list[str]()
    page.set_default_timeout(10_000)
    page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(address)
    page.wait_for_selector("#recommended-list .card")
    yield page
    assert not problems
    assert page.evaluate("document.documentElement.scrollWidth") <= request.param
    context.close()


def expect(locator: Any) -> Any:
    """Playwright's assertions; waiting for a function needs `eval`, which the policy forbids."""
    from playwright import sync_api

    return sync_api.expect(locator)


def titles(page: Any, where: str) -> list[str]:
    found: list[str] = page.locator(f"{where} h3").all_inner_texts()
    return found


def said(page: Any, part: str, words: str) -> None:
    expect(page.locator(f"#{part}-status")).to_contain_text(words)


def test_a_user_has_a_history_and_recommendations_with_pictures(
    page: Any, client: httpx.Client
) -> None:
    page.get_by_label("User id").fill("u3")
    page.get_by_role("button", name="Show").click()
    shown = client.get("/v1/users/u3/history", params={"k": 9}).json()["items"]
    expect(page.locator("#history .card")).to_have_count(len(shown))
    assert titles(page, "#history") == [each["title"] or each["item_id"] for each in shown]
    said(page, "recommended", "items.")
    page.wait_for_selector("#history img")
    assert page.evaluate("[...document.images].every(each => each.naturalWidth > 0)")
    listed = client.post("/v1/recommend", json={"user_id": "u3", "k": 12}).json()["items"]
    expected = [each["title"] or each["item_id"] for each in listed]
    assert titles(page, "#recommended-list") == expected
    assert "Because you met" in page.locator("#recommended-list .card").first.inner_text()


def test_a_history_is_built_by_keyboard_alone(page: Any, client: httpx.Client) -> None:
    def focused() -> str:
        label: str = page.evaluate("document.activeElement.ariaLabel ?? document.activeElement.id")
        return label

    def tab_to(words: str) -> None:
        for _ in range(100):
            page.keyboard.press("Tab")
            if focused().startswith(words):
                outline = "getComputedStyle(document.activeElement).outlineStyle"
                assert page.evaluate(outline) != "none"
                return
        raise AssertionError(f"no tab leads to {words}")

    page.evaluate("document.activeElement.blur()")
    tab_to("search-text")
    page.keyboard.type("quiet storm")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-list .card")
    first, second = titles(page, "#search-list")[:2]
    tab_to("Add")
    page.keyboard.press("Enter")
    said(page, "who", "at place 1")
    tab_to("Add")
    page.keyboard.press("Space")
    said(page, "who", "at place 2")
    assert titles(page, "#history") == [first, second]
    assert page.locator("input[value=history]").is_checked()
    found = client.post("/v1/search", json={"text": "quiet storm", "k": 2}).json()["items"]
    ids = [each["item_id"] for each in found]

    def is_list_of(history: list[str]) -> None:
        answer = client.post("/v1/recommend", json={"history": history, "k": 12}).json()
        expected = [each["title"] or each["item_id"] for each in answer["items"]]
        expect(page.locator("#recommended-list h3")).to_have_text(expected)

    is_list_of(ids)
    page.keyboard.press("Shift+Tab")
    tab_to(f"Add {second}")  # the focus stayed in the results
    for _ in range(100):
        page.keyboard.press("Shift+Tab")
        if focused() == f"Move {second} earlier":
            break
    page.keyboard.press("Enter")
    assert titles(page, "#history") == [second, first]
    assert focused() == f"Move {second} later"
    is_list_of(ids[::-1])
    tab_to(f"Remove {second}")
    page.keyboard.press("Enter")
    assert titles(page, "#history") == [first] and focused() == f"Remove {first}"
    is_list_of(ids[:1])


def test_what_is_looked_for_now_counts_beside_what_was_met(page: Any, client: httpx.Client) -> None:
    def shows(asked: dict[str, Any]) -> None:
        items = client.post("/v1/recommend", json={**asked, "k": 12}).json()["items"]
        expected = [each["title"] or each["item_id"] for each in items]
        expect(page.locator("#recommended-list h3")).to_have_text(expected)
        words = {"both": "its words and its meaning", "text": "its words", "meaning": "its meaning"}
        for card, item in zip(page.locator("#recommended-list .card").all(), items, strict=True):
            found = item["found_by"]
            assert ("Found by" in card.inner_text()) == (found is not None)
            assert found is None or f"Found by {words[found]}" in card.inner_text()

    def press(key: str, times: int = 1) -> None:
        for _ in range(times):
            page.keyboard.press(key)

    user = {"user_id": page.get_by_label("User id").input_value()}
    wish = page.get_by_label("What do you feel like now?")
    mix = page.get_by_label("Weight of what was met")
    without = titles(page, "#recommended-list")
    assert mix.is_disabled()
    # by keyboard alone, from the user's own button to the box, its button and the weight
    page.get_by_role("button", name="Show").focus()
    press("Tab")
    expect(wish).to_be_focused()
    page.keyboard.type("the quiet storm")
    press("Enter")
    shows({**user, "query": "the quiet storm"})
    assert titles(page, "#recommended-list") != without
    press("Tab")
    expect(page.get_by_role("button", name="Recommend", exact=True)).to_be_focused()
    press("Tab")
    expect(mix).to_be_focused()
    press("ArrowLeft", 5)
    expect(page.locator("#mix-told")).to_have_text("0 %")
    shows({**user, "query": "the quiet storm", "mix": 0})
    press("ArrowRight", 10)
    shows({**user, "query": "the quiet storm", "mix": 1})
    assert titles(page, "#recommended-list") == without
    press("ArrowLeft", 7)
    shows({**user, "query": "the quiet storm", "mix": 0.3})
    # a history of one's own, and none at all
    page.get_by_label("A history of my own").check()
    asked = {"history": [], "query": "the quiet storm", "mix": 0.3}
    shows(asked)
    found = client.post("/v1/recommend", json=asked).json()["items"]
    page.locator("#recommended-list button").first.click()
    said(page, "who", "at place 1")
    shows({**asked, "history": [found[0]["item_id"]]})
    assert found[0]["title"] not in titles(page, "#recommended-list")
    wish.fill("")
    expect(page.locator("#recommended-list .card").first).to_contain_text("Because you met")
    assert mix.is_disabled()


def test_search_is_by_words_and_meaning_and_by_a_picture_too(
    page: Any, client: httpx.Client, tiny_source: Path
) -> None:
    def shows(answer: httpx.Response) -> None:
        items = answer.json()["items"]
        expected = [each["title"] or each["item_id"] for each in items]
        expect(page.locator("#search-list h3")).to_have_text(expected)
        words = {"both": "its words and its meaning", "text": "its words", "meaning": "its meaning"}
        for card, item in zip(page.locator("#search-list .card").all(), items, strict=True):
            assert f"Found by {words[item['found_by']]}" in card.inner_text()

    page.get_by_role("button", name="Search").click()
    said(page, "search", "Write what you look for")
    page.get_by_label("By words and meaning").fill("quiet storm")
    page.get_by_role("button", name="Search").click()
    shows(client.post("/v1/search", json={"text": "quiet storm", "k": 12}))
    page.get_by_label("Order by the taste above").check()
    page.get_by_role("button", name="Search").click()
    asked = {"text": "quiet storm", "user_id": page.get_by_label("User id").input_value(), "k": 12}
    shows(client.post("/v1/search", json=asked))
    picture = (tiny_source / "2.png").read_bytes()
    page.evaluate(
        """async bytes => {
          const files = new DataTransfer();
          files.items.add(new File([new Uint8Array(bytes)], "p.png", {type: "image/png"}));
          document.getElementById("search-drop").dispatchEvent(
            new DragEvent("drop", {dataTransfer: files, bubbles: true, cancelable: true}));
        }""",
        list(picture),
    )
    parts = {name: (None, str(value)) for name, value in asked.items()}
    image = {"image": ("p.png", picture, "image/png")}
    shows(client.post("/v1/search/media", files={**parts, **image}))
    page.get_by_label("By words and meaning").fill("")
    page.get_by_label("Order by the taste above").uncheck()
    page.locator("#search-form button").first.click()
    shows(client.post("/v1/search/media", files={"k": (None, "12"), **image}))
    page.locator("#search-file").set_input_files(
        [{"name": "t.txt", "mimeType": "text/plain", "buffer": b"x"}]
    )
    said(page, "search", "not t.txt")
    page.get_by_role("button", name="Remove p.png").click()
    assert page.locator("#search-files li").count() == 0


def test_what_the_service_refuses_is_said_in_a_line(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto(address)
    page.wait_for_selector("#recommended-list .card")
    page.get_by_label("User id").fill("nobody")
    page.get_by_role("button", name="Show").click()
    page.wait_for_selector("#who-status.error")
    said(page, "who", "nothing is known of user 'nobody'")
    said(page, "recommended", "items.")
    assert "times by others" in page.locator("#recommended-list .card").first.inner_text()
    page.get_by_label("User id").fill("u0")
    page.get_by_role("button", name="Show").click()
    page.wait_for_selector("#who-status:not(.error)")
    page.get_by_role("button", name="Who would like it?").click()
    page.wait_for_selector("#new-status.error")
    said(page, "new", "none of the media")
    page.close()


def test_reasons_are_shown_as_text(browser: Any, address: str, client: httpx.Client) -> None:
    page, asked = browser.new_page(), list[Any]()
    reason = {"words": "Because of <b>'i1'</b>."}

    def explain(route: Any) -> None:
        asked.append(route.request.post_data_json)
        answer = client.post("/v1/recommend", json={**asked[-1], "wishes": {}}).json()
        items = [{**each, "why": reason, "title": "<img src=x>"} for each in answer["items"]]
        route.fulfill(json={**answer, "items": items})

    page.route("**/v1/recommend", explain)
    page.goto(address)
    page.wait_for_selector("#recommended-list .card")
    assert asked[0]["wishes"] == {"why": "en"}
    card = page.locator("#recommended-list .card").first
    assert reason["words"] in card.inner_text() and card.locator("h3").inner_text() == "<img src=x>"
    page.close()


def sure(row: dict[str, Any]) -> str:
    """How the page tells a confidence; JavaScript rounds halves up."""
    known = row["confidence"]
    return "not known" if known is None else f"{math.floor(100 * known + 0.5)} %"


def test_a_dropped_picture_is_scored(page: Any, client: httpx.Client, tiny_source: Path) -> None:
    picture, sound = tiny_source / "2.png", tiny_source / "6.wav"
    page.evaluate(
        """async bytes => {
          const files = new DataTransfer();
          files.items.add(new File([new Uint8Array(bytes)], "p.png", {type: "image/png"}));
          files.items.add(new File(["x"], "p.zip", {type: "application/zip"}));
          document.getElementById("drop").dispatchEvent(
            new DragEvent("drop", {dataTransfer: files, bubbles: true, cancelable: true}));
        }""",
        list(picture.read_bytes()),
    )
    said(page, "new", "No place for p.zip")
    page.locator("#files").set_input_files(sound)
    page.get_by_label("title").fill("The red river")
    page.get_by_role("button", name="Who would like it?").click()
    said(page, "new", f"Of {NUM_USERS} users")
    users = client.get("/v1/users").json()["user_ids"]
    answer = client.post(
        "/v1/score",
        data={"user_id": users, "title": "The red river"},
        files={"poster": ("p.png", picture.read_bytes(), "image/png"),
               "sound": ("s.wav", sound.read_bytes(), "audio/wav")},
    )  # fmt: skip
    expected = [
        [each["user_id"], str(each["rank"]), f"{each['score']:.3f}", sure(each)]
        for each in answer.json()["users"]
    ]
    rows = page.locator("#audience tbody tr").all()
    assert [row.locator("td").all_inner_texts() for row in rows] == expected
    page.get_by_role("button", name="Remove p.png").click()
    assert page.locator("#chosen li").count() == 1


def test_a_key_is_asked_for_once_and_kept_nowhere(
    browser: Any, tiny_run: Path, tmp_path: Path
) -> None:
    key = add_key(tmp_path / "keys.json", "one", "read", days=None, per_minute=6000)
    with serving(settings(tiny_run, tmp_path, keys=tmp_path / "keys.json")) as (address, _):
        page = browser.new_page()
        page.goto(address)
        for given in ("wrong", key):
            page.get_by_label("Key", exact=True).fill(given)
            page.keyboard.press("Enter")
            if given == "wrong":
                expect(page.locator("#key-problem")).to_contain_text("not known")
        page.wait_for_selector("#history img")
        stored = "[localStorage.length, sessionStorage.length, document.cookie]"
        assert page.evaluate(stored) == [0, 0, ""]
        page.close()


def test_a_text_file_is_scored_for_a_history(page: Any, client: httpx.Client) -> None:
    page.locator("#recommended-list button").first.click()
    said(page, "who", "at place 1")
    words = b"The quiet garden"
    text = {"name": "t.txt", "mimeType": "text/plain", "buffer": words}
    page.locator("#files").set_input_files([text])
    expect(page.locator("#texts textarea").first).to_have_value(words.decode())
    page.get_by_role("button", name="Who would like it?").click()
    said(page, "new", f"Of {NUM_USERS} users")
    added = client.post("/v1/recommend", json={"user_id": "u0", "k": 1}).json()["items"][0]
    asked = {"history": json.dumps([added["item_id"]]), "title": words.decode()}
    # a multipart form, though it has no file
    parts = {name: (None, value) for name, value in asked.items()}
    [expected] = client.post("/v1/score", files=parts).json()["users"]
    first = page.locator("#audience tbody tr").first.locator("td").all_inner_texts()
    place, score = str(expected["rank"]), f"{expected['score']:.3f}"
    assert first == ["The history above", place, score, sure(expected)]
