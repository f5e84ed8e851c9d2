// The page: who asks, what he feels like now, what is recommended, search, and a new item.

import { get, post, Problem } from "./api.js";
import { button, showCards, titleOf } from "./cards.js";
import { takesFiles } from "./files.js";
import * as newItem from "./newitem.js";
import * as search from "./search.js";

const NUM_LISTED = 12;
const NUM_MET = 9;
const at = (id) => document.getElementById(id);
const state = { mode: "user", userId: null, history: [] };

// Does what a part was asked to, and says in its line what came of it; of several the last counts.
const turns = {};
async function run(part, act) {
  const turn = (turns[part] = (turns[part] ?? 0) + 1);
  const isLast = () => turns[part] === turn;
  say(part, "…");
  try {
    const line = await act(isLast);
    if (isLast()) say(part, line ?? "");
  } catch (error) {
    if (!(error instanceof Problem)) console.error(error);
    if (isLast()) say(part, error instanceof Problem ? error.message : "The page failed.", true);
  }
}

function say(part, line, isError = false) {
  const status = at(`${part}-status`);
  status.textContent = line;
  status.classList.toggle("error", isError);
}

function who() {
  if (state.mode === "user") return state.userId === null ? {} : { user_id: state.userId };
  return { history: state.history.map((each) => each.item_id) };
}

// What is looked for now, and how much what was met counts beside it. Reasons are told of lists
// without a query alone: below, `found_by` of each item stands for them.
function wish() {
  const query = at("wish").value.trim();
  return query ? { query, mix: at("mix").valueAsNumber } : { wishes: { why: "en" } };
}

function recommend() {
  return run("recommended", async (isLast) => {
    const asked = { ...who(), ...wish() };
    if (!asked.user_id && !asked.history?.length && !asked.query) {
      at("recommended-list").replaceChildren();
      return state.mode === "user" ? "Choose a user." : "Add an item to the history.";
    }
    let answer;
    try {
      answer = await post("v1/recommend", { ...asked, k: NUM_LISTED });
    } catch (error) {
      if (isLast()) at("recommended-list").replaceChildren();
      throw error;
    }
    if (!isLast()) return;
    showCards(at("recommended-list"), answer.items, (item) => [adds(item)]);
    return lineOf(answer);
  });
}

function lineOf(answer) {
  const broken = answer.degraded.length ? ` Out of order: ${answer.degraded.join(", ")}.` : "";
  const count = answer.items.length === 1 ? "1 item." : `${answer.items.length} items.`;
  return (answer.items.length ? count : "Nothing is left to list.") + broken;
}

function adds(item) {
  return button("Add to history", `Add ${titleOf(item)} to the history`, () => {
    choose("history");
    state.history.push({ item_id: item.item_id, title: item.title });
    showHistory();
    say("who", `${titleOf(item)} is in the history, at place ${state.history.length}.`);
    recommend();
  });
}

function showUser() {
  return run("who", async (isLast) => {
    at("history").replaceChildren();
    if (state.userId === null) return;
    const found = await get(`v1/users/${encodeURIComponent(state.userId)}/history?k=${NUM_MET}`);
    if (!isLast()) return;
    showCards(at("history"), found.items, () => []);
    return found.items.length ? "What the user met last, oldest first." : "No events are known.";
  });
}

function showHistory() {
  showCards(at("history"), state.history, (item, place) => {
    const title = titleOf(item);
    const earlier = button("◀", `Move ${title} earlier`, () => move(place, place - 1, "earlier"));
    const later = button("▶", `Move ${title} later`, () => move(place, place + 1, "later"));
    earlier.disabled = place === 0;
    later.disabled = place === state.history.length - 1;
    const remove = button("✕", `Remove ${title}`, () => {
      state.history.splice(place, 1);
      changed(`${title} is removed.`);
      const next = at("history").children[Math.min(place, state.history.length - 1)];
      (next?.querySelector("button:last-child") ?? at("search-text")).focus();
    });
    return [earlier, later, remove];
  });
}

function move(from, to, way) {
  const [item] = state.history.splice(from, 1);
  state.history.splice(to, 0, item);
  changed(`${titleOf(item)} is at place ${to + 1}.`);
  // the focus goes with the item; at an end its other button takes it
  const [earlier, later] = at("history").children[to].querySelectorAll("button");
  const wanted = way === "earlier" ? earlier : later;
  (wanted.disabled ? (wanted === earlier ? later : earlier) : wanted).focus();
}

function changed(line) {
  showHistory();
  say("who", line);
  recommend();
}

function choose(mode) {
  turns.who = (turns.who ?? 0) + 1; // what a user's history was asked for comes too late
  state.mode = mode;
  document.querySelector(`input[name="who"][value="${mode}"]`).checked = true;
  at("user-form").hidden = mode !== "user";
  at("history-hint").hidden = mode !== "history";
}

for (const radio of document.querySelectorAll('input[name="who"]')) {
  radio.addEventListener("change", () => {
    choose(radio.value);
    if (radio.value === "user") showUser();
    else changed("");
    if (radio.value === "user") recommend();
  });
}

at("user-form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.userId = at("user-id").value;
  showUser();
  recommend();
});

at("wish-form").addEventListener("submit", (event) => {
  event.preventDefault();
  recommend();
});
at("wish").addEventListener("input", () => {
  at("mix").disabled = !at("wish").value.trim();
  if (at("mix").disabled) recommend(); // emptied
});
at("mix").addEventListener("input", () => {
  at("mix-told").textContent = `${Math.round(100 * at("mix").valueAsNumber)} %`;
});
at("mix").addEventListener("change", recommend);

function find() {
  return run("search", async (isLast) => {
    const taste = at("search-mine").checked ? who() : {};
    const text = at("search-text").value.trim();
    const answer = await search.find({ ...(text ? { text } : {}), ...taste, k: NUM_LISTED });
    if (!isLast()) return;
    showCards(at("search-list"), answer.items, (item) => [adds(item)]);
    return lineOf(answer);
  });
}

at("search-form").addEventListener("submit", (event) => {
  event.preventDefault();
  find();
});
takesFiles(at("search-drop"), at("search-file"), async (files) => {
  const problem = search.take(files);
  if (problem) say("search", problem, true);
  else await find();
});

at("new-form").addEventListener("submit", (event) => {
  event.preventDefault();
  run("new", () => newItem.score(who()));
});

takesFiles(at("drop"), at("files"), async (files) => {
  const problem = await newItem.take(files);
  say("new", problem, Boolean(problem));
});

run("who", async () => {
  const catalogue = await get("v1/catalogue");
  at("catalogue").textContent = catalogue.name;
  newItem.prepare(catalogue);
  const found = await get("v1/users?k=50");
  at("user-ids").replaceChildren(...found.user_ids.map((each) => new Option("", each)));
  if (found.user_ids.length && state.mode === "user" && state.userId === null) {
    at("user-id").value = state.userId = found.user_ids[0];
    setTimeout(() => { showUser(); recommend(); });
  }
});
// beside the drop zone a file would take the page's place
for (const name of ["dragover", "drop"]) {
  window.addEventListener(name, (event) => event.preventDefault());
}
