// A new item: files by the catalogue's columns, texts, and who would like it.

import { get, send } from "./api.js";
import { element } from "./cards.js";
import { showFiles } from "./files.js";

const MAX_USERS = 50;
const FIRST = 10;
let columns = null;
let chosen = [];

export function prepare(catalogue) {
  columns = catalogue;
  const kinds = ["image", "audio", "video"].filter((kind) => columns[kind].length);
  document.getElementById("files").accept = [...kinds.map((kind) => `${kind}/*`), "text/plain"].join();
  document.getElementById("texts").replaceChildren(...columns.text.map((name) => {
    const label = element("label", name);
    const input = element("textarea");
    input.name = name;
    input.rows = 2;
    label.append(input);
    return label;
  }));
}

// Takes files up; says which of them the catalogue has no column for.
export async function take(files) {
  const refused = [];
  for (const file of files) {
    if (file.type.startsWith("text/")) {
      const input = document.querySelector("#texts textarea");
      if (input) input.value = (await file.text()).trim();
      else refused.push(file.name);
      continue;
    }
    const kind = file.type.split("/")[0];
    const own = ["image", "audio", "video"].includes(kind) ? columns?.[kind] ?? [] : [];
    const column = own.find((each) => !chosen.some((other) => other.column === each));
    if (column) chosen.push({ column, file });
    else refused.push(file.name);
  }
  showChosen();
  if (!refused.length) return "";
  const media = ["image", "audio", "video"].flatMap((kind) => columns?.[kind] ?? []);
  return `No place for ${refused.join(", ")}: an item has ${media.join(", ") || "no media"}, one file each.`;
}

function showChosen() {
  showFiles(document.getElementById("chosen"), chosen, (place) => {
    chosen.splice(place, 1);
    showChosen();
    document.getElementById("files").focus();
  });
}

// Asks how users like it, and shows them; who: {user_id} or {history}. Returns a line about it.
export async function score(who) {
  const users = (await get(`v1/users?k=${MAX_USERS}`)).user_ids;
  if (who.user_id && !users.includes(who.user_id)) users.unshift(who.user_id);
  const rows = (await send("v1/score", formOf((form) => {
    for (const each of users) form.append("user_id", each);
  }))).users;
  if (who.history?.length) {
    const own = await send("v1/score", formOf((form) => {
      form.append("history", JSON.stringify(who.history));
    }));
    rows.unshift({ ...own.users[0], user_id: "The history above", own: true });
  }
  const audience = document.getElementById("audience");
  audience.querySelector("tbody").replaceChildren(...rows.map((each) => {
    const line = element("tr");
    if (each.own || each.user_id === who.user_id) line.className = "chosen";
    line.append(element("td", each.user_id), element("td", String(each.rank)));
    const sure = each.confidence ?? null;
    line.append(element("td", each.score.toFixed(3)));
    line.append(element("td", sure === null ? "not known" : `${Math.round(100 * sure)} %`));
    return line;
  }));
  audience.hidden = false;
  const [best] = rows.filter((each) => !each.own);
  const among = rows.filter((each) => !each.own && each.rank <= FIRST).length;
  return `Of ${users.length} users ${best.user_id} likes it most (rank ${best.rank}). `
    + `It is in the first ${FIRST} for ${among} of them.`;
}

function formOf(add) {
  const form = new FormData();
  for (const input of document.querySelectorAll("#texts textarea")) {
    if (input.value.trim()) form.append(input.name, input.value.trim());
  }
  for (const each of chosen) form.append(each.column, each.file);
  add(form);
  return form;
}
