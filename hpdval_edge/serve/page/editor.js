// The bundle's label list: looked at always, edited where the server allows it.

import { addFile, call, edit } from "./api.js";

const get = (id) => document.getElementById(id);
// More rows than this make a page slow; the search finds the rest.
const MOST_ROWS = 200;
let known = null;
let changed = () => {};

// `onChange` is called with the new list after every edit, and when another program changed it.
export function setUpEditor(onChange) {
  changed = onChange;
  get("find").addEventListener("input", () => known && drawRows());
  get("add-name").addEventListener("submit", (event) => {
    event.preventDefault();
    const name = get("new-label").value.trim();
    apply(() => edit("add", { labels: [name] }), `Added ${name}.`).then((done) => {
      if (done) get("new-label").value = "";
      get("new-label").focus();
    });
  });
  get("labels-file").addEventListener("change", (event) => {
    const [file] = event.target.files;
    event.target.value = "";
    if (file) apply(() => addFile(file), `Added the labels of ${file.name}.`);
  });
}

export async function refreshLabels() {
  const answer = await call("v1/labels");
  if (known && JSON.stringify(known) === JSON.stringify(answer)) return;
  const first = known === null;
  take(answer);
  if (!first) changed(answer);
}

export const labelNames = () => known.labels.map((row) => row.label);

function take(answer) {
  known = answer;
  const count = answer.labels.length;
  get("count").textContent = `${count} label${count === 1 ? "" : "s"}`;
  get("about").textContent = `${answer.bundle} · ${answer.backend} · ${answer.precision}`;
  document.title = `${answer.bundle} · hpedge`;
  get("edit-note").textContent = answer.edit
    ? "Edits change the bundle on disk, at once."
    : "Only to look at: this server was started without --edit.";
  // Without fields in it, the keyboard has nothing else to scroll it by.
  get("rows").tabIndex = answer.edit ? -1 : 0;
  get("add").hidden = !answer.edit;
  get("add-name").hidden = answer.not_by_name !== null;
  get("add-file").hidden = answer.not_by_file !== null;
  const reasons = [answer.not_by_name, answer.not_by_file].filter(Boolean);
  get("add-note").textContent =
    reasons.length < 2
      ? "New labels have no threshold of their own yet: they are marked “not fitted”."
      : `No label can be added here: ${reasons.map((reason) => reason.replace(/\.$/, "")).join("; ")}.`;
  drawRows();
}

// Run one edit; true where it was done. The focus stays where it was, whichever rows are drawn anew.
async function apply(action, done) {
  get("edit-error").hidden = true;
  get("rows").setAttribute("aria-busy", "true");
  try {
    take(await action());
    get("edit-status").textContent = done;
    changed(known);
    return true;
  } catch (error) {
    get("edit-status").textContent = "";
    get("edit-error").textContent = error.message;
    get("edit-error").hidden = false;
    drawRows();
    return false;
  } finally {
    get("rows").removeAttribute("aria-busy");
  }
}

function drawRows() {
  const wanted = get("find").value.trim().toLowerCase();
  const found = known.labels.filter((row) => row.label.toLowerCase().includes(wanted));
  const focused = document.activeElement?.closest("#rows li");
  const [label, act] = [focused?.dataset.label, document.activeElement?.dataset.act];
  get("rows").replaceChildren(...found.slice(0, MOST_ROWS).map(drawRow));
  const left = found.length - MOST_ROWS;
  get("unlisted").hidden = found.length > 0 && left <= 0;
  get("unlisted").textContent = found.length ? `${left} more; search for them.` : "No label has this in its name.";
  if (label !== undefined) focus(label, act);
}

function focus(label, act) {
  const row = [...get("rows").children].find((item) => item.dataset.label === label);
  const same = row?.querySelector(`[data-act="${act}"]`);
  (same && !same.disabled ? same : row?.querySelector("button:enabled"))?.focus();
}

function drawRow(row) {
  const item = document.createElement("li");
  item.dataset.label = row.label;
  const threshold = document.createElement("span");
  threshold.className = row.fitted ? "threshold" : "threshold badge";
  threshold.textContent = row.fitted ? row.threshold.toFixed(3) : "not fitted";
  threshold.title = `threshold ${row.threshold.toFixed(3)}`;
  if (!known.edit) {
    const name = document.createElement("span");
    name.className = "plain";
    name.textContent = row.label;
    item.append(name, threshold);
    return item;
  }
  const place = labelNames().indexOf(row.label);
  const acts = document.createElement("span");
  acts.className = "acts";
  acts.append(
    button("up", "↑", `Move ${row.label} up`, place === 0, () => move(row.label, -1)),
    button("down", "↓", `Move ${row.label} down`, place === known.labels.length - 1, () => move(row.label, 1)),
    button("remove", "✕", `Remove ${row.label}`, known.labels.length === 1, () => remove(row.label)),
  );
  item.append(nameField(row.label), threshold, acts);
  return item;
}

function nameField(label) {
  const field = document.createElement("input");
  field.value = label;
  field.dataset.act = "name";
  field.spellcheck = false;
  field.autocomplete = "off";
  field.setAttribute("aria-label", `Name of ${label}; Enter renames it`);
  const rename = async () => {
    const name = field.value.trim();
    if (!name || name === label) {
      field.value = label;
      return;
    }
    const here = document.activeElement === field;
    const done = await apply(() => edit("rename", { names: { [label]: name } }), `${label} is now called ${name}.`);
    if (here) focus(done ? name : label, "name");
  };
  field.addEventListener("change", rename);
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") field.value = label;
  });
  return field;
}

function button(act, text, name, disabled, action) {
  const made = document.createElement("button");
  made.type = "button";
  made.className = "button icon";
  made.dataset.act = act;
  made.textContent = text;
  made.disabled = disabled;
  made.setAttribute("aria-label", name);
  made.title = name;
  made.addEventListener("click", action);
  return made;
}

function move(label, step) {
  const names = labelNames();
  const place = names.indexOf(label);
  [names[place], names[place + step]] = [names[place + step], names[place]];
  apply(() => edit("reorder", { labels: names }), `${label} is now number ${place + step + 1}.`);
}

function remove(label) {
  const dialog = get("confirm");
  get("confirm-title").textContent = `Remove ${label}?`;
  dialog.returnValue = "keep";
  dialog.onclose = () => {
    if (dialog.returnValue !== "remove") return;
    const names = labelNames();
    const place = names.indexOf(label);
    apply(() => edit("remove", { labels: [label] }), `Removed ${label}.`).then((done) => {
      if (done) focus(names[place + 1] ?? names[place - 1], "remove");
    });
  };
  dialog.showModal();
}
