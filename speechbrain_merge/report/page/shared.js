"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);

function make(tag, text, attributes) {
  const element = document.createElement(tag);
  if (text !== undefined && text !== null) element.textContent = text;
  for (const [key, value] of Object.entries(attributes || {})) element.setAttribute(key, value);
  return element;
}

function fill(select, options, chosen) {
  select.replaceChildren(...options.map(([value, title]) => make("option", title, { value })));
  if (chosen !== undefined) select.value = chosen;
}

// Tables: what is shown of each cell is text; what it is sorted by is a number
// where the text starts with one, and cells without a number come last.
function number(text) {
  const found = /^[<>≥≤+\s[]*([-−+]?\d+(\.\d+)?(e[-+]?\d+)?)/i.exec(text);
  return found ? parseFloat(found[1].replace("−", "-")) : null;
}

function compare(one, other) {
  const [a, b] = [number(one), number(other)];
  if (a !== null && b !== null) return a - b;
  if (a !== null || b !== null) return a !== null ? -1 : 1;
  return one.localeCompare(other);
}

const sorting = {};

function show(table, content) {
  const state = sorting[table.id] || (sorting[table.id] = { column: null, down: false });
  const head = make("tr");
  content.header.forEach((title, column) => {
    const cell = make("th", null, { scope: "col" });
    const button = make("button", title, { type: "button" });
    button.addEventListener("click", () => {
      state.down = state.column === column && !state.down;
      state.column = column;
      show(table, content);
      table.querySelectorAll("thead button")[column].focus();
    });
    if (state.column === column) cell.setAttribute("aria-sort", state.down ? "descending" : "ascending");
    cell.append(button);
    head.append(cell);
  });
  const rows = content.rows.map((row, index) => ({ row, index }));
  if (state.column !== null) {
    rows.sort((one, other) => {
      const [a, b] = [one.row[state.column].text, other.row[state.column].text];
      const order = compare(a, b);
      const missing = number(a) === null || number(b) === null;
      const turned = state.down && !(missing && number(a) !== number(b)) ? -order : order;
      return turned || one.index - other.index;
    });
  }
  const body = make("tbody");
  for (const { row } of rows) {
    const line = make("tr");
    row.forEach((cell, column) => {
      const shown = column ? make("td", cell.text) : make("th", cell.text, { scope: "row" });
      if (cell.best) {
        shown.className = "best";
        shown.title = "significantly better than the next best of its column";
      }
      if (cell.told) shown.className = "told";
      if (cell.shade) shown.style.background = cell.shade;
      line.append(shown);
    });
    body.append(line);
  }
  const first = make("thead");
  first.append(head);
  table.replaceChildren(first, body);
}

function gallery() {
  find("gallery").append(...data.pictures.map((picture) => {
    const figure = make("figure");
    figure.append(make("img", null, { src: picture.source, alt: picture.title, loading: "lazy" }), make("figcaption", picture.title));
    return figure;
  }));
  find("pictures").hidden = !data.pictures.length;
}
