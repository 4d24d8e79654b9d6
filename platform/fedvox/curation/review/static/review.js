// The review page: shows a case, takes a decision, goes on. Every key is listed in the dialog behind "?".
import { Plane, SliceCache } from "./planes.js";
import { Clock } from "./clock.js";
import { ask, newRequest } from "./server.js";

const by = (id) => document.getElementById(id);
const role = document.body.dataset.role;
const STYLES = ["fill", "outline", "hidden"];
const CT_PRESETS = [["soft tissue", 400, 40], ["lung", 1500, -600], ["bone", 1800, 400], ["brain", 80, 40], ["liver", 150, 30]];
const HOLD_MS = 240000;

const clock = new Clock(by("clock"));
let current = null; // the case that is shown
let chosen = null; // number of the version that "accept" means
let finding = -1;
let plane = 0; // the one that the keys move in
let preset = 0;
let busy = false;
let request = newRequest(); // a decision that is sent again, because no answer came, is the same decision
let styles = new Map(); // version -> fill, outline, hidden

const view = {
  caseId: "", shape: [1, 1, 1], spacing: [1, 1, 1], cross: [0, 0, 0], window: { width: 1, level: 0 }, zoom: 1, colors: [],
  cache: new SliceCache(() => refresh(), (error) => say(`A plane could not be loaded: ${error.message}`)),
  imageAddress: (axis, index) => `/api/cases/${encodeURIComponent(view.caseId)}/image/${axis}/${index}`,
  labelAddress: (version, axis, index) => `/api/cases/${encodeURIComponent(view.caseId)}/labels/${version}/${axis}/${index}`,
  layers(axis, index) {
    const layers = [];
    for (const [version, style] of styles) {
      if (style === "hidden") continue;
      const voxels = view.cache.get(view.labelAddress(version, axis, index));
      if (!voxels) return null;
      layers.push({ voxels, opacity: by("opacity").value / 100, outline: style === "outline" });
    }
    return layers;
  },
  difference(axis, index) {
    if (!by("difference").checked || chosen === null || current.shown === null || chosen === current.shown) return false;
    const a = view.cache.get(view.labelAddress(current.shown, axis, index));
    const b = view.cache.get(view.labelAddress(chosen, axis, index));
    return a && b ? { a, b } : null;
  },
  heat(axis, index) {
    const name = by("map").value;
    return name ? view.cache.get(`/api/cases/${encodeURIComponent(view.caseId)}/map/${name}/${axis}/${index}`) : false;
  },
};
const planes = ["axial", "coronal", "sagittal"].map((name, axis) => new Plane(by(name), axis, view));

function say(text) { by("status").textContent = text; }

// ---- drawing ---------------------------------------------------------------------------------------------

let scheduled = false;
function refresh() {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => { scheduled = false; draw(); });
}

function draw() {
  if (!current) return;
  for (const one of planes) {
    const box = one.canvas.parentElement.getBoundingClientRect();
    const [width, height] = [Math.max(1, Math.round(box.width)), Math.max(1, Math.round(box.height))];
    if (one.canvas.width !== width || one.canvas.height !== height) Object.assign(one.canvas, { width, height });
    one.draw();
    const index = view.cross[one.axis], size = view.shape[one.axis];
    document.querySelector(`[data-slice=${one.name}]`).textContent = `${index + 1} / ${size}`;
    one.canvas.setAttribute("aria-label", `${one.name} plane, slice ${index + 1} of ${size}`);
  }
  readOut();
}

function readOut() {
  const [z, y, x] = view.cross;
  const at = y * view.shape[2] + x;
  const image = view.cache.get(view.imageAddress(0, z));
  const value = image ? Number(image[at].toPrecision(5)) : "…";
  const names = [];
  for (const version of current.versions) {
    const style = styles.get(version.number);
    if (!style || style === "hidden") continue;
    const voxels = view.cache.get(view.labelAddress(version.number, 0, z));
    if (voxels) names.push(`${label(version)}: ${(current.structures[voxels[at]] || { name: "not judged" }).name}`);
  }
  by("under").textContent = `x ${x}  y ${y}  z ${z}   value ${value}   ${names.join("   ")}`;
  by("width-text").value = Number(view.window.width.toPrecision(4));
  by("level-text").value = Number(view.window.level.toPrecision(4));
  by("opacity-text").value = `${by("opacity").value} %`;
}

function moveTo(voxel) {
  view.cross = voxel;
  refresh();
  for (const one of planes) for (const step of [-1, 1]) { // what will probably be asked for next
    const index = voxel[one.axis] + step;
    if (index < 0 || index >= view.shape[one.axis]) continue;
    view.cache.get(view.imageAddress(one.axis, index));
    for (const [version, style] of styles) if (style !== "hidden") view.cache.get(view.labelAddress(version, one.axis, index));
  }
}

// ---- a case ----------------------------------------------------------------------------------------------

function show(found) {
  current = found;
  request = newRequest();
  finding = -1;
  chosen = found.shown;
  styles = new Map();
  if (found.shown !== null) styles.set(found.shown, "fill");
  view.cache.clear();
  Object.assign(view, { caseId: found.case_id, shape: found.shape, spacing: found.spacing_mm, zoom: 1, colors: found.structures.map((s) => s.color) });
  view.cross = found.shape.map((size) => Math.floor(size / 2));
  prepareWindow(found.window);
  by("case-name").textContent = `${found.case_id}${found.blind ? " – read it as if for the first time" : ""}${found.gold ? " – gold, frozen" : ""}`;
  by("picture").hidden = by("evidence").hidden = true;
  by("map").replaceChildren(new Option("none", ""), ...found.maps.map((name) => new Option(name, name)));
  listFindings();
  listVersions();
  legend();
  for (const button of document.querySelectorAll("[data-decides], [data-opens]")) button.disabled = !found.may_decide;
  by("accept").disabled = !found.may_decide || chosen === null;
  clock.start();
  moveTo(view.cross);
  const purpose = found.item ? "" : " It is not from your queue.";
  say(`Case ${found.case_id}: ${found.findings.length} findings.${purpose}`);
}

function prepareWindow({ low, high, min, max }) {
  const span = Math.max(max - min, 1e-6);
  view.window = { width: Math.max(high - low, span / 1000), level: (low + high) / 2 };
  Object.assign(by("width"), { min: span / 200, max: span, step: span / 200, value: view.window.width });
  Object.assign(by("level"), { min, max, step: span / 200, value: view.window.level });
  preset = 0;
}

function label(version) { return version.name ? `${version.number} ${version.name}` : `${version.number}`; }

function listFindings() {
  by("findings-count").textContent = current.findings.length ? `(${current.findings.length})` : "(none)";
  by("findings").replaceChildren(...current.findings.map((one, index) => {
    const item = document.createElement("li"), button = document.createElement("button");
    const severity = document.createElement("span");
    severity.className = "severity number soft";
    severity.textContent = one.severity.toFixed(2);
    severity.title = "severity, 0 to 1";
    button.append(severity, `${one.structure}: ${one.rule}`);
    button.addEventListener("click", () => jump(index));
    item.append(button);
    return item;
  }));
}

function listVersions() {
  by("versions").replaceChildren(...current.versions.map((version) => {
    const row = document.createElement("div"), name = document.createElement("label"), radio = document.createElement("input");
    const style = document.createElement("select"), facts = document.createElement("small");
    row.className = "version";
    Object.assign(radio, { type: "radio", name: "version", value: version.number, checked: version.number === chosen });
    radio.addEventListener("change", () => choose(version.number));
    style.setAttribute("aria-label", `Overlay of version ${version.number}`);
    style.append(...STYLES.map((text) => new Option(text, text)));
    style.value = styles.get(version.number) || "hidden";
    style.dataset.version = version.number;
    style.addEventListener("change", () => { setStyle(version.number, style.value); });
    name.append(radio, ` ${version.number} – ${version.kind}${version.name ? ` ${version.name}` : ""}${version.shown ? " (the label)" : ""}`);
    facts.textContent = [version.round ? `round ${version.round}` : "", version.parent ? `from version ${version.parent}` : "", version.reason].filter(Boolean).join(" · ");
    row.append(style, name, facts);
    return row;
  }));
}

function legend() {
  by("legend").replaceChildren(...current.structures.slice(1, 25).map((structure) => {
    const item = document.createElement("li"), swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.background = `rgb(${structure.color.join(" ")})`;
    item.append(swatch, structure.name);
    return item;
  }));
}

function setStyle(version, style) {
  styles.set(version, style);
  const select = document.querySelector(`select[data-version="${version}"]`);
  if (select) select.value = style;
  refresh();
}

function choose(number) {
  if (chosen !== null && chosen !== number && chosen !== current.shown) setStyle(chosen, "hidden");
  chosen = number;
  if (number !== current.shown) {
    if (current.shown !== null) setStyle(current.shown, "outline");
    setStyle(number, "fill");
  } else setStyle(number, "fill");
  const radio = document.querySelector(`input[name=version][value="${number}"]`);
  if (radio) radio.checked = true;
  by("accept-text").textContent = number === current.shown ? "Accept" : `Choose ${number}`;
  by("accept").disabled = !current.may_decide;
  say(`Version ${number} is chosen.`);
  refresh();
}

async function jump(index) {
  finding = index;
  const one = current.findings[index];
  [...by("findings").querySelectorAll("button")].forEach((button, place) => button.setAttribute("aria-current", String(place === index)));
  by("evidence").hidden = false;
  by("evidence").textContent = one.evidence.map(([key, value]) => `${key} ${value}`).join(" · ") || "no numbers";
  by("picture").hidden = !one.picture;
  const address = `/api/cases/${encodeURIComponent(current.case_id)}/findings/${one.number}`;
  if (one.picture) Object.assign(by("picture"), { src: `${address}/picture`, alt: `${one.structure}: ${one.rule}` });
  if (!styles.has(one.version)) setStyle(one.version, "outline");
  say(`Finding ${index + 1} of ${current.findings.length}: ${one.structure}, ${one.rule}.`);
  const found = await attempt(() => ask(`${address}/place`));
  if (found && found.voxel) moveTo(found.voxel);
}

// ---- talking to the server -------------------------------------------------------------------------------

// Runs one exchange at a time; an error is said, and nothing is lost.
async function attempt(exchange) {
  try {
    return await exchange();
  } catch (error) {
    say(error.message);
    return null;
  }
}

async function once(exchange) {
  if (busy) return null;
  busy = true;
  const found = await attempt(exchange);
  busy = false;
  return found;
}

function progress(status) {
  by("round").textContent = status.round || "–";
  Object.assign(by("budget"), { max: Math.max(status.total, 1), value: status.done });
  by("budget-text").textContent = `${status.done} of ${status.total} done, mine ${status.mine} in ${status.my_minutes} min`;
}

async function next() {
  if (role === "reader") { say("You are admitted as a reader: press g to go to a case."); return; }
  const open = current && current.item ? current.item.id : null;
  const found = await once(() => ask(`/api/next${open === null ? "" : `?skip=${open}`}`, {}));
  if (!found) return;
  progress(found.status);
  if (found.case && open !== null && found.case.case_id === current.case_id) say("There is no other case for you now.");
  else if (found.case) show(found.case);
  else { clock.stop(); current = null; by("case-name").textContent = "no case left"; say("The queue has no case left for you in this round."); disable(); }
}

function disable() { for (const button of document.querySelectorAll("[data-decides], [data-opens]")) button.disabled = true; }

async function decide(action, reason, version) {
  if (!current || !current.may_decide) { say("Here is nothing for you to decide."); return; }
  const body = { action, version, revision: current.revision, item: current.item ? current.item.id : null, seconds: clock.seconds(), reason, request_id: request };
  const base = current.shown === null ? "" : `?base=${current.shown}`;
  const found = await once(() => ask(`/api/cases/${encodeURIComponent(current.case_id)}/decision${base}`, body, [409]));
  if (!found) return;
  if (found.code === "conflict") { conflict(found, { action, reason, version }); return; }
  progress(found.status);
  by("undo").disabled = !found.can_undo;
  current.item = null; // answered: it must not be given back
  const told = `${action === "accept" ? "Accepted" : action === "reject" ? "Rejected" : "Edited"}: ${current.case_id}.`;
  await next();
  say(`${told} ${by("status").textContent}`);
}

async function undo() {
  if (by("undo").disabled) { say("There is nothing to take back."); return; }
  const open = current && current.item ? current.item.id : null;
  const found = await once(async () => {
    const back = await ask("/api/undo", {});
    if (open !== null) await ask(`/api/items/${open}/release`, {});
    return back;
  });
  if (!found) return;
  by("undo").disabled = true;
  progress(found.status);
  show(found.case);
  say(`Taken back. Decide on ${found.case.case_id} again.`);
}

function fillChanges(box, changes) {
  box.hidden = !changes || !changes.length;
  box.querySelector("tbody").replaceChildren(...(changes || []).map((change) => {
    const row = document.createElement("tr");
    const dice = change.dice === null ? "–" : change.dice.toFixed(4);
    [change.structure, change.added_mm3.toFixed(1), change.removed_mm3.toFixed(1), dice].forEach((text, column) => {
      const cell = document.createElement("td");
      if (column) cell.className = "number";
      cell.textContent = text;
      row.append(cell);
    });
    return row;
  }));
}

async function conflict(told, mine) {
  const last = told.last;
  by("conflict-text").textContent = told.error + (last ? ` ${last.reviewer}: ${last.decision}${last.result ? `, version ${last.result}` : ""}${last.reason ? `, “${last.reason}”` : ""}.` : "");
  fillChanges(by("conflict-changes"), told.changes);
  const answer = await open("conflict-dialog");
  if (answer === "again") {
    current.revision = told.revision;
    current.item = null; // it was answered by the other one
    request = newRequest();
    await decide(mine.action, mine.reason, mine.version);
  } else if (answer === "next") {
    current.item = null;
    await next();
  } else await reopen(current.case_id);
}

async function reopen(id) {
  const found = await once(() => ask(`/api/cases/${encodeURIComponent(id)}`));
  if (found) show(found);
}

// ---- dialogs ---------------------------------------------------------------------------------------------

function open(id) {
  const dialog = by(id);
  dialog.returnValue = "cancel";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true }));
}

async function reject() {
  if (!current || !current.may_decide) return;
  by("reason").value = "";
  if (await open("reject-dialog") === "reject") await decide("reject", by("reason").value.trim(), null);
}

async function edit() {
  if (!current || !current.may_decide || chosen === null) return;
  const id = encodeURIComponent(current.case_id);
  Object.assign(by("task"), { href: `/api/cases/${id}/task.zip?version=${chosen}` });
  by("edited").value = by("edit-reason").value = "";
  by("edit-problem").hidden = by("edit-changes").hidden = by("confirm-edit").disabled = true;
  if (await open("edit-dialog") === "edit") await decide("edit", by("edit-reason").value.trim(), null);
}

async function upload() {
  const file = by("edited").files[0];
  if (!file) return;
  by("confirm-edit").disabled = by("edit-problem").hidden = true;
  fillChanges(by("edit-changes"), []);
  const address = `/api/cases/${encodeURIComponent(current.case_id)}/edited?version=${chosen}&allow_empty=${by("allow-empty").checked}`;
  try {
    const found = await ask(address, file, [], { "x-file-name": encodeURIComponent(file.name) });
    fillChanges(by("edit-changes"), found.changes);
    by("confirm-edit").disabled = false;
  } catch (error) {
    Object.assign(by("edit-problem"), { hidden: false, textContent: error.message });
  }
}

async function goTo() {
  const listed = await attempt(() => ask("/api/queue"));
  by("case-list").replaceChildren(...(listed || []).map((item) => new Option(item.state, item.case_id)));
  by("case-id").value = "";
  if (await open("goto-dialog") !== "go") return;
  if (current && current.item) await attempt(() => ask(`/api/items/${current.item.id}/release`, {}));
  await reopen(by("case-id").value.trim());
}

// ---- keys, mouse -----------------------------------------------------------------------------------------

function stepVersion(step) {
  const numbers = current.versions.map((version) => version.number);
  if (numbers.length) choose(numbers[(numbers.indexOf(chosen) + step + numbers.length) % numbers.length]);
}

function stepFinding(step) {
  const count = current.findings.length;
  if (count) jump(finding < 0 ? (step > 0 ? 0 : count - 1) : (finding + step + count) % count);
  else say("The checks found nothing in this case.");
}

function cycleStyle() {
  if (chosen === null) return;
  const style = STYLES[(STYLES.indexOf(styles.get(chosen) || "hidden") + 1) % STYLES.length];
  setStyle(chosen, style);
  say(`Version ${chosen}: ${style}.`);
}

function cycleMap() {
  const box = by("map");
  if (box.options.length < 2) { say("There are no attention maps of this case."); return; }
  box.selectedIndex = (box.selectedIndex + 1) % box.options.length;
  say(`Attention map: ${box.options[box.selectedIndex].text}.`);
  refresh();
}

function setWindow(width, level) {
  view.window = { width: Math.max(width, Number(by("width").min) / 4), level };
  Object.assign(by("width"), { value: width });
  Object.assign(by("level"), { value: level });
  refresh();
}

function nextPreset() {
  const { low, high, min, max } = current.window;
  const automatic = ["automatic", high - low, (low + high) / 2], whole = ["whole range", max - min, (max + min) / 2];
  const presets = [automatic, whole, ...(current.modality === "CT" ? CT_PRESETS : [])];
  preset = (preset + 1) % presets.length;
  const [name, width, level] = presets[preset];
  setWindow(width, level);
  say(`Window: ${name}.`);
}

function setOpacity(value) { by("opacity").value = value; refresh(); }
function zoom(factor) { view.zoom = factor ? Math.min(12, Math.max(1, view.zoom * factor)) : 1; refresh(); }
function focusPlane(index) { plane = index; planes[index].canvas.focus(); }
function step(dx, dy, dz, event) { const far = event.shiftKey ? 10 : 1; moveTo(planes[plane].moved(dx * far, dy * far, dz * far)); }

const ANYWHERE = { "?": () => open("help-dialog"), n: next, g: goTo, u: undo };
const WITH_CASE = {
  1: () => focusPlane(0), 2: () => focusPlane(1), 3: () => focusPlane(2),
  ArrowLeft: (e) => step(-1, 0, 0, e), ArrowRight: (e) => step(1, 0, 0, e), ArrowUp: (e) => step(0, -1, 0, e), ArrowDown: (e) => step(0, 1, 0, e),
  ",": (e) => step(0, 0, -1, e), ".": (e) => step(0, 0, 1, e), PageUp: (e) => step(0, 0, 1, e), PageDown: (e) => step(0, 0, -1, e),
  f: () => stepFinding(1), F: () => stepFinding(-1), v: () => stepVersion(1), V: () => stepVersion(-1), o: cycleStyle,
  d: () => { by("difference").checked = !by("difference").checked; refresh(); },
  m: cycleMap,
  "[": () => setOpacity(Number(by("opacity").value) - 10), "]": () => setOpacity(Number(by("opacity").value) + 10),
  w: () => setWindow(view.window.width * 0.9, view.window.level), W: () => setWindow(view.window.width / 0.9, view.window.level),
  l: () => setWindow(view.window.width, view.window.level - view.window.width * 0.05), L: () => setWindow(view.window.width, view.window.level + view.window.width * 0.05),
  p: nextPreset, "+": () => zoom(1.25), "=": () => zoom(1.25), "-": () => zoom(0.8), 0: () => zoom(0),
  a: () => { if (!by("accept").disabled) decide("accept", "", chosen); }, r: reject, e: edit,
};

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]") || event.ctrlKey || event.altKey || event.metaKey) return;
  const target = event.target;
  const moving = event.key.startsWith("Arrow") || event.key.startsWith("Page");
  if (moving && target.matches("input, select")) return; // sliders and choices have these keys themselves
  if (target.matches("input[type=text], input:not([type]), textarea, select")) return;
  const action = ANYWHERE[event.key] || (current && WITH_CASE[event.key]);
  if (!action) return;
  event.preventDefault();
  action(event);
});

for (const one of planes) {
  const place = (event) => {
    const box = one.canvas.getBoundingClientRect();
    moveTo(one.toVoxel(event.clientX - box.left, event.clientY - box.top));
  };
  one.canvas.addEventListener("focus", () => { plane = one.axis; });
  one.canvas.addEventListener("pointerdown", (event) => { if (current) { one.canvas.setPointerCapture(event.pointerId); place(event); } });
  one.canvas.addEventListener("pointermove", (event) => { if (current && event.buttons) place(event); });
  one.canvas.addEventListener("wheel", (event) => {
    if (!current) return;
    event.preventDefault();
    plane = one.axis;
    moveTo(one.moved(0, 0, event.deltaY > 0 ? -1 : 1));
  }, { passive: false });
}

by("width").addEventListener("input", () => setWindow(Number(by("width").value), view.window.level));
by("level").addEventListener("input", () => setWindow(view.window.width, Number(by("level").value)));
by("opacity").addEventListener("input", refresh);
by("map").addEventListener("change", refresh);
by("difference").addEventListener("change", refresh);
by("edited").addEventListener("click", () => { by("edited").value = ""; }); // so that the same file, saved anew, can be chosen again
by("edited").addEventListener("change", upload);
by("allow-empty").addEventListener("change", upload);
by("accept").addEventListener("click", () => decide("accept", "", chosen));
for (const [id, action] of [["reject", reject], ["edit", edit], ["undo", undo], ["next", next], ["goto", goTo], ["help", () => open("help-dialog")]]) by(id).addEventListener("click", action);
new ResizeObserver(refresh).observe(by("planes"));
setInterval(() => {
  if (current && current.item && !document.hidden) attempt(() => ask(`/api/cases/${encodeURIComponent(current.case_id)}/hold`, {}));
}, HOLD_MS);

attempt(() => ask("/api/status")).then((status) => status && progress(status));
