"use strict";
// The page is whole without this script. It adds: one board at a time, sorting, filtering, following a method, hints.
document.documentElement.classList.add("js");
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

function make(tag, properties) {
  return Object.assign(document.createElement(tag), properties);
}

// Put what an element holds into a button of its own, so that mouse, keyboard and screen reader know what it is.
function wrapInButton(element, title) {
  const button = make("button", { type: "button", title });
  button.append(...element.childNodes);
  element.append(button);
  return button;
}

function showBoards() {
  const boards = all(".board"), links = all(".boards a");
  if (boards.length < 2) return;
  const show = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const chosen = target?.closest(".board") ?? boards[0];
    for (const board of boards) board.hidden = board !== chosen;
    for (const link of links) {
      link.toggleAttribute("aria-current", link.getAttribute("href") === "#" + chosen.id);
    }
    if (target) target.scrollIntoView();
  };
  addEventListener("hashchange", show);
  show();
}

function followMethods() {
  const followed = new Set();
  const update = () => {
    document.body.classList.toggle("following", followed.size > 0);
    for (const mark of all("[data-m]")) mark.classList.toggle("on", followed.has(mark.dataset.m));
    for (const button of all("[data-m] > button, [data-m] > th > button")) {
      button.setAttribute("aria-pressed", followed.has(button.closest("[data-m]").dataset.m));
    }
  };
  const toggle = (key) => {
    if (!followed.delete(key)) followed.add(key);
    update();
  };
  const follow = "Follow through all figures";
  for (const name of all(".legend li[data-m], tbody tr[data-m] > th")) wrapInButton(name, follow);
  document.addEventListener("click", (event) => {
    const handle = event.target.closest("[data-m] button, .chart [data-m]");
    if (handle) toggle(handle.closest("[data-m]").dataset.m);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && followed.size) {
      followed.clear();
      update();
    }
    const mark = event.target.closest?.(".chart g[data-m]");
    if (mark && (event.key === "Enter" || event.key === " ")) {
      event.preventDefault();
      toggle(mark.dataset.m);
    }
  });
  update();
}

function sortTables() {
  for (const table of all("table.grid")) {
    const last = table.tHead.rows[table.tHead.rows.length - 1];
    const headers = [table.tHead.rows[0].cells[0], ...[...last.cells].filter((cell) => cell !== table.tHead.rows[0].cells[0])];
    const bodies = [...table.tBodies];
    const original = bodies.map((body) => [...body.rows]);
    headers.forEach((header, column) => {
      const button = wrapInButton(header, header.title ? header.title + ". Press to sort" : "Sort");
      header.removeAttribute("title"); // the button's now
      button.addEventListener("click", () => {
        const first = header.textContent.includes("↑") ? "descending" : "ascending";
        const second = first === "ascending" ? "descending" : "ascending";
        const now = header.getAttribute("aria-sort");
        const order = now === null ? first : now === first ? second : null;
        for (const other of headers) other.removeAttribute("aria-sort");
        if (order) header.setAttribute("aria-sort", order);
        bodies.forEach((body, k) => body.append(...(order ? sorted(original[k], column, order) : original[k])));
      });
    });
  }
}

function sorted(rows, column, order) {
  const sign = order === "ascending" ? 1 : -1;
  const key = (row) => {
    const cell = row.cells[column]; // words are in a bdi, numbers are not
    const number = cell.querySelector("bdi") ? NaN : parseFloat(cell.textContent.replaceAll(",", ""));
    return Number.isNaN(number) ? cell.textContent : number;
  };
  return [...rows].sort((a, b) => {
    const x = key(a), y = key(b);
    if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1; // words stand below numbers either way
    return sign * (typeof x === "number" ? x - y : x.localeCompare(y, "en", { numeric: true }));
  });
}

function filterTables() {
  for (const table of all("table.grid")) {
    const rows = [...table.tBodies].flatMap((body) => [...body.rows]);
    if (rows.length < 6) continue;
    const input = make("input", { type: "search", className: "filter", placeholder: "Filter rows" });
    input.setAttribute("aria-label", "Filter rows: " + table.parentElement.getAttribute("aria-label"));
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
    });
    table.parentElement.before(input);
  }
}

function pickOne() {
  for (const select of all("select[data-pick]")) {
    const choices = all(":scope > [data-choice]", document.getElementById(select.dataset.pick));
    const show = () => {
      for (const choice of choices) choice.hidden = choice.dataset.choice !== select.value;
    };
    select.addEventListener("change", show);
    show();
  }
}

function showHints() {
  const tip = document.getElementById("tip");
  const words = (element) => {
    const title = element.getAttribute("title") ?? element.querySelector(":scope > title")?.textContent;
    if (title) { // ours from now on: else the browser shows its own as well
      element.dataset.tip = element.closest(".heat td") ? place(element) + " " + title : title;
      element.removeAttribute("title");
      element.querySelector(":scope > title")?.remove();
      if (element instanceof SVGElement) element.setAttribute("aria-label", title);
    }
    return element.dataset.tip;
  };
  const place = (cell) => {
    const column = cell.closest("table").tHead.rows[0].cells[cell.cellIndex];
    return `${cell.parentElement.cells[0].textContent}, ${column.textContent}: ${cell.textContent}`;
  };
  const show = (event) => {
    let element = event.target;
    while (element && element !== document.body && !words(element)) element = element.parentElement;
    tip.hidden = !element?.dataset?.tip;
    if (tip.hidden) return;
    tip.textContent = element.dataset.tip;
    const box = element.getBoundingClientRect();
    const left = Math.min(Math.max(4, box.left + box.width / 2 - tip.offsetWidth / 2), innerWidth - tip.offsetWidth - 4);
    const above = box.top - tip.offsetHeight - 6;
    tip.style.left = left + "px";
    tip.style.top = (above > 4 ? above : box.bottom + 6) + "px";
  };
  document.addEventListener("pointerover", show);
  document.addEventListener("focusin", show);
  document.addEventListener("focusout", () => { tip.hidden = true; });
  addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
}

function markSameNoise() {
  document.addEventListener("pointerover", (event) => {
    for (const image of all(".strip i.same")) image.classList.remove("same");
    const image = event.target.closest?.(".strip i");
    if (!image) return;
    const cell = image.closest("td"), k = [...image.parentElement.children].indexOf(image);
    for (const row of image.closest("tbody").rows) {
      row.cells[cell.cellIndex]?.querySelector(".strip")?.children[k]?.classList.add("same");
    }
  });
}

function switchTheme() {
  const root = document.documentElement, button = document.querySelector(".theme");
  button.addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
}

addEventListener("DOMContentLoaded", () => {
  showBoards();
  followMethods();
  sortTables();
  filterTables();
  pickOne();
  showHints();
  markSameNoise();
  switchTheme();
});
