// Files that were dropped or chosen: a zone that takes them, and a list of those that are held.

import { button, element } from "./cards.js";

// Lets a zone and the input in it hand files over.
export function takesFiles(zone, input, take) {
  input.addEventListener("change", async () => {
    const files = [...input.files];
    input.value = "";
    await take(files);
  });
  for (const name of ["dragover", "dragleave", "drop"]) {
    zone.addEventListener(name, (event) => {
      event.preventDefault();
      zone.classList.toggle("over", name === "dragover");
      if (name === "drop") take([...event.dataTransfer.files]);
    });
  }
}

// Shows files with what each is; remove(place) is asked to let one go.
export function showFiles(list, held, remove) {
  list.replaceChildren(...held.map(({ column, file }, place) => {
    const line = element("li");
    if (file.type.startsWith("image/")) {
      const image = element("img");
      image.alt = "";
      const url = URL.createObjectURL(file);
      image.onload = image.onerror = () => URL.revokeObjectURL(url);
      image.src = url;
      line.append(image);
    }
    line.append(element("span", `${column}: ${file.name}`));
    line.append(button("Remove", `Remove ${file.name}`, () => remove(place)));
    return line;
  }));
}
