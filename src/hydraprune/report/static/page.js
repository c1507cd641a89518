"use strict";
const root = document.documentElement, tip = document.getElementById("tip");

// Light and dark.
const theme = document.getElementById("theme");
theme.hidden = false;
theme.onclick = () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
};

// Tables: a click on a heading sorts, another one turns the order round.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.onclick = () => {
      const value = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const numbers = [...body.rows].every(row => row.cells[column].dataset.value !== undefined);
      const before = head.getAttribute("aria-sort");
      const down = before ? before === "ascending" : numbers;
      const compare = numbers ? (a, b) => a - b : (a, b) => a.localeCompare(b, undefined, { numeric: true });
      const rows = [...body.rows].sort((a, b) => (down ? -1 : 1) * compare(value(a), value(b)));
      for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      body.append(...rows);
    };
  });
}

// What lies behind a value: in tables under the pointer; in charts next to it, or with the arrow keys one by one.
const show = (mark, text) => {
  const at = mark.getBoundingClientRect();
  tip.textContent = text;
  tip.hidden = false;
  const left = Math.min(Math.max(8, at.x + at.width / 2 - tip.offsetWidth / 2), innerWidth - tip.offsetWidth - 8);
  const above = at.y - tip.offsetHeight - 8;
  tip.style.transform = `translate(${left}px, ${above > 8 ? above : at.bottom + 8}px)`;
};
for (const cell of document.querySelectorAll("td[title]")) {
  const text = cell.title;
  cell.removeAttribute("title");
  cell.ariaDescription = text;
  cell.onpointerenter = cell.onpointerdown = () => show(cell, text);
  cell.onpointerleave = () => { tip.hidden = true; };
}
for (const chart of document.querySelectorAll(".plot svg")) {
  const marks = [...chart.querySelectorAll("use")];
  const texts = marks.map(mark => { const title = mark.querySelector("title"); title.remove(); return title.textContent; });
  let current = -1;
  const choose = number => {
    marks[current]?.classList.remove("on");
    current = number;
    marks[current]?.classList.add("on");
    if (number >= 0) show(marks[number], texts[number]); else tip.hidden = true;
  };
  chart.onpointermove = event => {
    const far = marks.map(mark => {
      const at = mark.getBoundingClientRect();
      return Math.hypot(at.x + at.width / 2 - event.clientX, at.y + at.height / 2 - event.clientY);
    });
    const nearest = far.indexOf(Math.min(...far));
    choose(far[nearest] < 32 ? nearest : -1);
  };
  chart.onpointerdown = chart.onpointermove;
  chart.onpointerleave = chart.onblur = () => choose(-1);
  chart.onkeydown = event => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") choose(-1);
    if (!step || !marks.length) return;
    event.preventDefault();
    choose((Math.max(current, step < 0 ? 0 : -1) + step + marks.length) % marks.length);
  };
}

// Where one is, and everything unfolded on paper.
const links = new Map([...document.querySelectorAll("nav a")].map(link => [link.hash.slice(1), link]));
const watch = new IntersectionObserver(entries => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) links.get(target.id)?.setAttribute("aria-current", "true");
    else links.get(target.id)?.removeAttribute("aria-current");
  }
}, { rootMargin: "-20% 0px -80% 0px" });
document.querySelectorAll("main > section").forEach(section => watch.observe(section));
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(each => { each.open = true; }));
