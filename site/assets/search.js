// SPDX-License-Identifier: Apache-2.0
// Searches the headings and the text of all sections. It loads the index when the field gets the focus.

const form = document.querySelector("form[role=search]");
const field = form.querySelector("input");
const found = document.getElementById("search-found");
const results = document.getElementById("search-results");
const mostResults = 12;

let index;
const load = () => index ??= fetch(form.dataset.index).then((response) => response.json());

// A section matches if it has all words. A word in a heading counts more than a word in the text.
function score(section, words) {
  let sum = 0;
  for (const word of words) {
    const points = 8 * section.heading.toLowerCase().includes(word) +
      4 * section.page.toLowerCase().includes(word) +
      section.text.toLowerCase().includes(word);
    if (points === 0) {
      return 0;
    }
    sum += points;
  }
  return sum;
}

// Returns the text around the first word, with the word marked.
function excerpt(text, words) {
  const at = text.toLowerCase().indexOf(words[0]);
  const line = document.createElement("span");
  if (at < 0) {
    line.append(text.slice(0, 120));
    return line;
  }
  const mark = document.createElement("mark");
  const end = at + words[0].length;
  mark.append(text.slice(at, end));
  line.append(at > 40 ? "…" : "", text.slice(Math.max(0, at - 40), at), mark, text.slice(end, end + 80));
  return line;
}

function result(section, words) {
  const link = document.createElement("a");
  link.href = section.url;
  const title = document.createElement("b");
  title.append(section.heading === section.page ? section.page : `${section.page}: ${section.heading}`);
  link.append(title, excerpt(section.text, words));
  const item = document.createElement("li");
  item.append(link);
  return item;
}

async function search() {
  const sections = await load();
  const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
  const matches = words.length === 0 ? [] : sections
    .map((section) => ({ section, points: score(section, words) }))
    .filter(({ points }) => points > 0)
    .sort((a, b) => b.points - a.points);
  results.replaceChildren(...matches.slice(0, mostResults).map(({ section }) => result(section, words)));
  results.hidden = matches.length === 0;
  found.textContent = words.length === 0 ? "" : `${matches.length} sections found`;
}

function close() {
  results.hidden = true;
  found.textContent = "";
}

// The arrow keys go through the field and the results.
function move(step) {
  const stops = [field, ...results.querySelectorAll("a")];
  stops.at((stops.indexOf(document.activeElement) + step) % stops.length).focus();
}

const keys = {
  ArrowDown: () => move(1),
  ArrowUp: () => move(-1),
  Escape: () => { field.focus(); close(); },
};

form.hidden = false;
field.addEventListener("focus", load);
field.addEventListener("input", search);
results.addEventListener("click", close);
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  await search();
  results.querySelector("a")?.click();
});
form.addEventListener("focusout", (event) => {
  if (!form.contains(event.relatedTarget)) {
    close();
  }
});
form.addEventListener("keydown", (event) => {
  if (keys[event.key] !== undefined) {
    event.preventDefault();
    keys[event.key]();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !event.ctrlKey && !event.metaKey && !event.altKey && document.activeElement !== field) {
    event.preventDefault();
    field.focus();
  }
});
