// The page: a picture from anywhere goes to the server, its labels come back as bars, a label shows where it is.

import { classify, onTokenNeeded } from "./api.js";
import { clearBars, press, showBars } from "./bars.js";
import { setUpCamera, stopCamera } from "./camera.js";
import { refreshLabels, setUpEditor } from "./editor.js";
import { drawHeatMap } from "./heatmap.js";

const get = (id) => document.getElementById(id);
const [stage, picture, shown, heat] = ["stage", "picture", "shown", "heat"].map(get);
// The picture on show: its File, its result, the heat maps fetched so far, the label whose map is drawn.
let current = null;
let pending = null;

async function look(file) {
  pending?.abort();
  pending = new AbortController();
  const { signal } = pending;
  hideHeatMap();
  say(`Looking at ${file.name || "the picture"} …`);
  fail(null);
  get("bars").setAttribute("aria-busy", "true");
  try {
    const { results } = await classify(file, { signal });
    const [result] = results;
    if (current?.file !== file) show(file, result);
    current = { file, result, maps: new Map(), label: null };
    get("legend").hidden = false;
    showBars(result, toggleHeatMap);
    say(summary(result));
  } catch (error) {
    if (error.name === "AbortError") return;
    if (current?.file === file) forget();
    say(current ? "The picture before is still shown." : "No picture yet.");
    fail(error.message);
  } finally {
    if (pending?.signal === signal) get("bars").removeAttribute("aria-busy");
  }
}

function show(file, result) {
  URL.revokeObjectURL(shown.src);
  picture.style.setProperty("--ratio", result.width / result.height);
  shown.src = URL.createObjectURL(file);
  shown.alt = `The picture ${file.name || ""}, ${result.width} by ${result.height} pixels`;
  shown.onerror = () => fail("This browser cannot show pictures of this format; the labels are right all the same.");
  get("name").textContent = `${file.name || "picture"} · ${result.width} × ${result.height}`;
  stopCamera();
  arrange();
}

function forget() {
  current = null;
  clearBars();
  get("legend").hidden = true;
  get("name").textContent = "";
  arrange();
}

function arrange() {
  const filming = !get("video").hidden;
  picture.hidden = filming || current === null && !shown.src;
  get("invitation").hidden = filming || !picture.hidden;
  stage.classList.toggle("empty", !get("invitation").hidden);
  if (filming) hideHeatMap();
}

async function toggleHeatMap(label) {
  if (current.label === label) return hideHeatMap();
  const asked = current;
  asked.label = label;
  press(label);
  fail(null);
  try {
    if (!asked.maps.has(label)) {
      const { results } = await classify(asked.file, { heatMap: label });
      asked.maps.set(label, results[0].heat_maps[label]);
    }
  } catch (error) {
    hideHeatMap();
    fail(error.message);
    return;
  }
  // Another label, or another picture, may have been asked for meanwhile.
  if (current !== asked || asked.label !== label) return;
  drawHeatMap(heat, asked.maps.get(label), asked.result.width / asked.result.height);
  heat.hidden = get("where").hidden = false;
  heat.setAttribute("role", "img");
  heat.setAttribute("aria-label", `Heat map of ${label}`);
  get("where-label").textContent = label;
  get("announcement").textContent = `Heat map of ${label} is shown.`;
}

function hideHeatMap() {
  heat.hidden = get("where").hidden = true;
  press(null);
  get("announcement").textContent = "";
  if (current) current.label = null;
}

function summary({ labels }) {
  if (!labels.length) return "No label reaches its threshold.";
  return `${labels.length === 1 ? "1 label" : `${labels.length} labels`}: ${labels.join(", ")}.`;
}

function say(sentence) {
  get("status").textContent = sentence;
}

function fail(sentence) {
  get("error").hidden = sentence === null;
  get("error").textContent = sentence ?? "";
}

function receive(files) {
  const [first] = files;
  if (first) look(first);
}

function setUpPictures() {
  get("file").addEventListener("change", (event) => {
    receive(event.target.files);
    // The same file may be chosen again.
    event.target.value = "";
  });
  document.addEventListener("paste", (event) => receive(event.clipboardData?.files ?? []));
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      stage.classList.toggle("over", kind === "dragover");
      if (kind === "drop") receive(event.dataTransfer.files);
    });
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !heat.hidden) hideHeatMap();
  });
  setUpCamera({
    started: () => {
      fail(null);
      arrange();
    },
    taken: look,
    stopped: arrange,
    failed: (sentence) => {
      arrange();
      fail(sentence);
    },
  });
}

onTokenNeeded((wrong) => {
  const dialog = get("ask-token");
  get("token-note").textContent = wrong ? "That token is not the right one." : "It is kept until this tab closes.";
  get("token").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((done) => {
    dialog.onclose = () => done(dialog.returnValue === "use" ? get("token").value.trim() : null);
  });
});
setUpPictures();
setUpEditor(() => {
  if (current) look(current.file);
});
const refresh = () => refreshLabels().catch((error) => fail(error.message));
refresh();
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) refresh();
});
