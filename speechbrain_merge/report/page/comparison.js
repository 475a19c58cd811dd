// A number as a cell shows it, and its share of the darkest colour
function shownNumber(value, small) {
  if (value === null) return "–";
  if (small && value !== 0 && Math.abs(value) < 0.001) return value.toExponential(2);
  return (Math.round(value * 1000) / 1000 + 0).toFixed(3);
}

function shade(value, measure) {
  if (value === null) return null;
  const share = Math.min(1, Math.abs(value) / measure.scale);
  const colour = value < 0 || measure.risk ? "--shade-risk" : "--shade";
  return `color-mix(in srgb, var(${colour}) ${Math.round(70 * share)}%, transparent)`;
}

function pairs() {
  const name = find("measure").value;
  const measure = data.measures[name];
  const rows = data.pairs[name][find("part").value];
  show(find("pairs-table"), {
    header: ["", ...data.labels],
    rows: rows.map((row, number) => [{ text: data.labels[number] }, ...row.map((value) => ({ text: shownNumber(value, measure.scale !== 1), shade: shade(value, measure) }))]),
  });
  find("pairs-note").textContent = measure.note;
}

function layers() {
  const name = find("layer-measure").value;
  show(find("layers-table"), {
    header: ["part", ...data.labels],
    rows: data.parts.map((part, place) => [
      { text: part },
      ...data.layers[name].values.map((model) => ({ text: shownNumber(model[place], true) })),
    ]),
  });
  find("layers-note").textContent = data.layers[name].note;
}

// The page
find("summary").textContent = data.summary;
find("warning-list").append(...data.warnings.map((text) => make("li", text)));
if (!data.warnings.length) find("warning-list").replaceWith(make("p", "None.", { class: "note" }));
fill(find("measure"), Object.entries(data.measures).map(([name, measure]) => [name, measure.title]));
fill(find("part"), [["all", "whole model"], ...data.parts.map((part) => [part, part])]);
fill(find("layer-measure"), Object.entries(data.layers).map(([name, layer]) => [name, layer.title]));
for (const id of ["measure", "part"]) find(id).addEventListener("change", pairs);
find("layer-measure").addEventListener("change", layers);
pairs();
layers();
gallery();
find("term-list").append(...data.terms.flatMap(([term, text]) => [make("dt", term), make("dd", text)]));
