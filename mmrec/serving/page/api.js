// Requests to the service. A key is asked for where it answers 401, and kept in memory alone.

let key = null;
let asking = null;

export class Problem extends Error {}

export async function get(path) {
  return (await request(path, {})).json();
}

export async function post(path, asked) {
  const headers = { "Content-Type": "application/json" };
  return (await request(path, { method: "POST", headers, body: JSON.stringify(asked) })).json();
}

export async function send(path, form) {
  return (await request(path, { method: "POST", body: form })).json();
}

// A picture as a URL of this page; an <img> could send no key.
export async function pictureUrl(itemId) {
  const answer = await request(`v1/items/${encodeURIComponent(itemId)}/image`, {});
  return URL.createObjectURL(await answer.blob());
}

// Those of some items that have a picture, so that none is asked for in vain.
export async function withPicture(itemIds) {
  if (!itemIds.length) return new Set();
  const query = new URLSearchParams(itemIds.map((each) => ["item_id", each]));
  return new Set((await get(`v1/pictures?${query}`)).item_ids);
}

async function request(path, options) {
  for (;;) {
    const used = key;
    const headers = { ...options.headers, ...(used ? { Authorization: `Bearer ${used}` } : {}) };
    let answer;
    try {
      answer = await fetch(path, { ...options, headers });
    } catch {
      throw new Problem("The service does not answer.");
    }
    if (answer.ok) return answer;
    const message = await messageOf(answer);
    if (answer.status !== 401) throw new Problem(message);
    // where another request has got a new key meanwhile, that one is tried first
    if (used === key) {
      asking ??= askForKey(used ? message : "").finally(() => { asking = null; });
      await asking;
    }
  }
}

async function messageOf(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `The service answers ${answer.status}.`;
  }
}

function askForKey(problem) {
  const dialog = document.getElementById("key-dialog");
  const form = document.getElementById("key-form");
  const input = document.getElementById("key");
  document.getElementById("key-problem").textContent = problem;
  input.value = "";
  dialog.showModal();
  return new Promise((resolve, reject) => {
    let given = false;
    form.onsubmit = (event) => {
      event.preventDefault();
      // of a header nothing but these may be sent
      if (!/^[\x21-\x7e]+$/.test(input.value.trim())) {
        document.getElementById("key-problem").textContent = "A key has letters, digits and signs.";
        return;
      }
      given = true;
      key = input.value.trim();
      dialog.close();
    };
    document.getElementById("key-cancel").onclick = () => dialog.close();
    dialog.onclose = () => {
      input.value = "";
      if (given) resolve();
      else reject(new Problem("No key was given."));
    };
  });
}
