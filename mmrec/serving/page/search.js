// Search: by words and meaning of a text, by a picture, by a sound, or by several of these.

import { post, Problem, send } from "./api.js";
import { showFiles } from "./files.js";

const NAMES = { image: "picture", audio: "sound" };
let held = [];

// Takes a picture and a sound up, in place of those before; says what else was there.
export function take(files) {
  const refused = [];
  for (const file of files) {
    const kind = file.type.split("/")[0];
    if (!(kind in NAMES)) {
      refused.push(file.name);
      continue;
    }
    held = [...held.filter((each) => each.kind !== kind), { kind, column: NAMES[kind], file }];
  }
  show();
  return refused.length ? `A search takes a picture and a sound, not ${refused.join(", ")}.` : "";
}

function show() {
  showFiles(document.getElementById("search-files"), held, (place) => {
    held.splice(place, 1);
    show();
    document.getElementById("search-file").focus();
  });
}

// Asks for items; asked: text, k, and who where his taste is to order them.
export function find(asked) {
  if (!asked.text && !held.length) {
    throw new Problem("Write what you look for, or choose a picture or a sound.");
  }
  if (!held.length) return post("v1/search", asked);
  const form = new FormData();
  for (const [name, value] of Object.entries(asked)) {
    form.append(name, typeof value === "string" ? value : JSON.stringify(value));
  }
  for (const each of held) form.append(each.kind, each.file);
  return send("v1/search/media", form);
}
