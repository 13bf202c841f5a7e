// The labels of a picture as bars against their thresholds.

const list = document.getElementById("bars");
const more = document.getElementById("more");
const FEW = 8;
let all = false;
let shown = null;

// `result` is one of /v1/classify; `pick` is called with the label whose bar was pressed.
export function showBars(result, pick) {
  const order = [...result.scores.filter((row) => row.chosen), ...result.scores.filter((row) => !row.chosen)];
  shown = { order, pick, place: scale(result.scores) };
  draw();
}

export function clearBars() {
  shown = null;
  list.replaceChildren();
  more.hidden = true;
}

export function press(label) {
  for (const bar of list.querySelectorAll(".bar")) {
    bar.setAttribute("aria-pressed", String(label !== null && bar.dataset.label === label));
  }
}

more.addEventListener("click", () => {
  all = !all;
  const first = list.children.length;
  draw();
  if (all) list.children[first]?.querySelector("button").focus();
});

function draw() {
  const { order, pick, place } = shown;
  const pressed = list.querySelector('[aria-pressed="true"]')?.dataset.label ?? null;
  const few = Math.max(FEW, order.filter((row) => row.chosen).length);
  list.replaceChildren(...(all ? order : order.slice(0, few)).map((row) => bar(row, place, pick)));
  press(pressed);
  more.hidden = order.length <= few;
  more.textContent = all ? "Show fewer labels" : `Show all ${order.length} labels`;
  more.setAttribute("aria-expanded", String(all));
}

// All bars share one scale, from a little below the lowest score or threshold to a little above the highest.
function scale(rows) {
  const values = rows.flatMap((row) => [row.score, row.threshold]);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return (value) => `${3 + (94 * (value - low)) / (high - low || 1)}%`;
}

function bar(row, place, pick) {
  const button = element("button", ["bar", row.chosen && "chosen", !row.fitted && "unfitted"]);
  button.type = "button";
  button.dataset.label = row.label;
  const name = element("span", ["label"], row.label);
  if (!row.fitted) name.append(element("span", ["badge"], "not fitted"));
  const [track, fill, tick] = [element("span", ["track"]), element("span", ["fill"]), element("span", ["tick"])];
  fill.style.width = place(row.score);
  tick.style.left = place(row.threshold);
  track.append(fill, tick);
  const [score, chance] = [row.score.toFixed(3), `${Math.round(100 * row.probability)} %`];
  button.append(name, track, element("span", ["number"], score), element("span", ["number"], chance));
  button.setAttribute(
    "aria-label",
    `${row.label}${row.chosen ? ", chosen" : ""}, score ${score}, threshold ${row.threshold.toFixed(3)}` +
      `${row.fitted ? "" : " not fitted"}, probability ${chance}, heat map`,
  );
  button.title = `threshold ${row.threshold.toFixed(3)}${row.fitted ? "" : ", not fitted"}`;
  button.addEventListener("click", () => pick(row.label));
  const item = document.createElement("li");
  item.append(button);
  return item;
}

function element(tag, classes, text = "") {
  const made = document.createElement(tag);
  made.classList.add(...classes.filter(Boolean));
  made.textContent = text;
  return made;
}
