// Items as cards: a picture or the title's initials, facts, buttons. Text is set, never parsed.

import { pictureUrl, withPicture } from "./api.js";

const BASIS = {
  attributes: "From what is known of the user",
  content: "By its content",
  history: "From the history",
  popularity: "Popular",
  request: "From when and where",
  search: "Found by the search",
  taste: "From the taste",
};
const FOUND = {
  both: "Found by its words and its meaning",
  meaning: "Found by its meaning",
  text: "Found by its words",
};

export function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

export function button(text, label, act) {
  const made = element("button", text);
  made.type = "button";
  made.setAttribute("aria-label", label);
  made.addEventListener("click", act);
  return made;
}

// Shows items in a list; buttonsOf(item, place) gives the buttons of each.
export function showCards(list, items, buttonsOf) {
  const cards = items.map((item, place) => card(item, buttonsOf(item, place)));
  list.replaceChildren(...cards);
  showPictures(cards, items);
}

export function titleOf(item) {
  return item.title ?? item.item_id;
}

function card(item, buttons) {
  const made = element("li", undefined, "card");
  const picture = element("div", undefined, "picture");
  picture.setAttribute("aria-hidden", "true");
  picture.append(element("span", initials(titleOf(item))));
  made.append(picture, element("h3", titleOf(item)));
  if (item.score !== undefined) {
    made.append(element("p", `${item.rank} · score ${item.score.toFixed(3)}`));
    made.append(element("p", reasonOf(item)));
  }
  if (buttons.length) {
    const actions = element("div", undefined, "actions");
    actions.append(...buttons);
    made.append(actions);
  }
  return made;
}

function reasonOf(item) {
  return item.why?.words || FOUND[item.found_by] || BASIS[item.basis] || item.basis;
}

function initials(title) {
  const words = title.match(/[\p{L}\p{N}]+/gu) ?? ["?"];
  return words.slice(0, 2).map((each) => [...each][0].toUpperCase()).join("");
}

async function showPictures(cards, items) {
  try {
    const there = await withPicture([...new Set(items.map((each) => each.item_id))]);
    const shown = items.map((item, place) => [item, cards[place]])
      .filter(([item]) => there.has(item.item_id));
    await Promise.all(shown.map(([item, made]) => showPicture(item, made)));
  } catch {
    // the initials stay: a picture is no reason for an error
  }
}

async function showPicture(item, made) {
  const image = element("img");
  image.alt = "";
  const url = await pictureUrl(item.item_id);
  image.onload = () => {
    URL.revokeObjectURL(url);
    made.querySelector(".picture").replaceChildren(image);
  };
  image.onerror = () => URL.revokeObjectURL(url);
  image.src = url;
}
