function rates() {
  const table = data.tables[find("mode").value][find("seed").value];
  show(find("rates-table"), table);
  find("rates-note").textContent = find("seed").value === "all"
    ? "★ significantly better than the next best of its column (MAPSSWE, p < 0.05, corrected by Holm's method)."
    : "Significance is tested over all seeds together: choose all seeds to see it.";
}

// Utterances
const FEW = 10;

function hypothesis(score, reference) {
  const shown = document.createDocumentFragment();
  let [said, heard] = [0, 0];
  for (const step of score.steps) {
    const deleted = step === "D";
    const word = deleted ? reference[said] : score.words[heard];
    const piece = step === "=" ? document.createTextNode(word) : make("span", word, { class: step });
    if (step === "S") piece.title = "said: " + reference[said];
    shown.append(piece, " ");
    if (step !== "I") said += 1;
    if (!deleted) heard += 1;
  }
  return shown;
}

function utterances() {
  const [first, second, set] = ["first", "second", "set"].map((id) => find(id).value);
  const mode = find("mode").value;
  const seed = find("seed").value === "all" ? String(data.seeds[0]) : find("seed").value;
  const kept = ((data.utterances[mode] || {})[seed] || {})[set];
  const list = find("utterance-list");
  if (!kept) {
    list.replaceChildren(make("p", "No transcripts were kept for this choice."));
    find("utterances-note").textContent = "";
    return;
  }
  const pairs = kept.shown
    .map((one) => ({ one, a: one.models[first], b: one.models[second] }))
    .filter((pair) => pair.a && pair.b)
    .map((pair) => ({ ...pair, change: pair.b.errors - pair.a.errors }))
    .filter((pair) => !find("changed").checked || pair.change !== 0)
    .sort((one, other) => Math.abs(other.change) - Math.abs(one.change));
  find("utterances-note").textContent =
    `Seed ${seed}: ${pairs.length} shown, of ${kept.shown.length} kept of ${kept.total}` +
    (kept.shown.length < kept.total ? ", those that the models differ on most." : ".");
  const entries = pairs.map(({ one, a, b, change }) => {
    const article = make("article", null, { class: "utterance" });
    const title = make("h3", one.id + " ");
    const sign = change > 0 ? `+${change} errors` : change < 0 ? `−${-change} errors` : "same number of errors";
    title.append(make("span", sign, { class: change > 0 ? "more" : change < 0 ? "fewer" : "" }));
    const lines = make("dl");
    lines.append(make("dt", "said"), make("dd", one.reference.join(" ")));
    for (const [name, score] of [[first, a], [second, b]]) {
      const words = make("dd");
      words.append(hypothesis(score, one.reference));
      lines.append(make("dt", data.titles[name] || name), words);
    }
    article.append(title, lines);
    return article;
  });
  list.replaceChildren(...entries.slice(0, FEW));
  if (entries.length > FEW) {
    const more = make("button", `Show all ${entries.length}`, { type: "button", id: "more" });
    more.addEventListener("click", () => {
      more.replaceWith(...entries.slice(FEW));
    });
    list.append(more);
  }
}

// Family tree
const SVG = "http://www.w3.org/2000/svg";
function draw(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function cut(text, length) {
  return text.length > length ? text.slice(0, length - 1) + "…" : text;
}

function tree() {
  const { nodes, columns } = data.tree;
  const [width, height, gapX, gapY] = [190, 44, 60, 14];
  const tallest = Math.max(1, ...columns.map((column) => column.length));
  const place = Object.create(null);
  columns.forEach((column, x) => {
    const free = (tallest - column.length) * (height + gapY) / 2;
    column.forEach((name, y) => {
      place[name] = { x: 8 + x * (width + gapX), y: 8 + free + y * (height + gapY) };
    });
  });
  const size = { width: columns.length * (width + gapX) - gapX + 16, height: tallest * (height + gapY) - gapY + 16 };
  const svg = draw("svg", { ...size, viewBox: `0 0 ${size.width} ${size.height}`, role: "group", "aria-label": "Family tree" });
  const lines = [];
  for (const node of nodes) {
    for (const parent of node.parents) {
      if (!place[parent]) continue;
      const [a, b] = [place[parent], place[node.name]];
      const [x, y, u, v] = [a.x + width, a.y + height / 2, b.x, b.y + height / 2];
      const line = draw("path", { d: `M ${x} ${y} C ${x + gapX / 2} ${y}, ${u - gapX / 2} ${v}, ${u} ${v}` });
      lines.push({ line, parent, child: node.name });
      svg.append(line);
    }
  }
  const boxes = {};
  function choose(node) {
    for (const [name, box] of Object.entries(boxes)) box.setAttribute("aria-pressed", String(name === node.name));
    for (const { line, parent, child } of lines) {
      line.classList.toggle("lit", child === node.name || parent === node.name);
    }
    const list = make("dl");
    for (const [key, value] of node.about) list.append(make("dt", key), make("dd", value));
    find("about").replaceChildren(make("h3", node.title), list);
  }
  for (const node of nodes) {
    const { x, y } = place[node.name];
    const box = draw("g", {
      class: `node ${node.kind}`, transform: `translate(${x} ${y})`, tabindex: "0", role: "button",
      "aria-pressed": "false", "aria-label": `${node.title}, ${node.how}`,
    });
    box.append(
      draw("title", {}, node.title),
      draw("rect", { width, height, rx: 6 }),
      draw("text", { x: 10, y: 19 }, cut(node.title, 26)),
      draw("text", { x: 10, y: 35, class: "soft" }, cut(node.how, 32)),
    );
    box.addEventListener("click", () => choose(node));
    box.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        choose(node);
      }
    });
    boxes[node.name] = box;
    svg.append(box);
  }
  find("tree").replaceChildren(svg);
  const shown = nodes.find((node) => node.name === data.pair[1]);
  if (shown) choose(shown);
}

// The page
find("summary").textContent = data.summary;
fill(find("mode"), data.modes.map((mode) => [mode, mode]));
fill(find("seed"), [
  ["all", data.seeds.length > 1 ? "all: mean ± standard deviation" : String(data.seeds[0])],
  ...(data.seeds.length > 1 ? data.seeds.map((seed) => [String(seed), String(seed)]) : []),
]);
find("mode-label").hidden = data.modes.length < 2;
find("seed-label").hidden = data.seeds.length < 2;
const models = Object.entries(data.titles);
fill(find("first"), models, data.pair[0]);
fill(find("second"), models, data.pair[1]);
fill(find("set"), data.sets.map((name) => [name, name]));
for (const id of ["mode", "seed"]) find(id).addEventListener("change", () => { rates(); utterances(); });
for (const id of ["first", "second", "set", "changed"]) find(id).addEventListener("change", utterances);
rates();
utterances();
if (data.compared.rows.length) show(find("compared-table"), data.compared);
else find("compared").hidden = true;
gallery();
find("utterances").hidden = !Object.keys(data.utterances).length;
for (const id of ["compared", "pictures", "utterances"]) {
  if (find(id).hidden) document.querySelector(`nav a[href="#${id}"]`).hidden = true;
}
tree();
