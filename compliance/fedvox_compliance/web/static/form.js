// Saves each answer when it is given. Without this file every form still works by its button.
"use strict";

const words = document.body.dataset;
const live = document.getElementById("live");
const waiting = new Map(); // form -> "running" or "again"

document.documentElement.classList.add("scripted");

function show(form, kind, text) {
  const line = form.querySelector(".save");
  if (!line) return;
  line.className = "save " + kind;
  line.querySelector(".status").textContent = text;
}

function replace(element, html) {
  // The markup comes from this server's own templates, which escape every value.
  if (element) element.innerHTML = html;
}

function apply(form, found) {
  replace(document.getElementById("panel"), found.panel);
  replace(document.getElementById("sections"), found.sections);
  live.textContent = found.sentence;
  const card = form.closest(".question");
  if (!card) return;
  if (found.card) {
    const box = document.createElement("div");
    box.innerHTML = found.card;
    const fresh = box.querySelector(".question");
    card.replaceWith(fresh);
    const again = fresh.querySelector("form[data-autosave]");
    show(again, "failed", found.status);
    const ticked = again.querySelector("input:checked");
    (ticked || again.querySelector("input[type=radio]")).focus();
    return;
  }
  if (found.version) for (const field of card.querySelectorAll("input[name=version]")) field.value = found.version;
  const typing = card.querySelector(".meta").contains(document.activeElement);
  if (found.meta && !typing) replace(card.querySelector(".meta"), found.meta);
  card.classList.toggle("answered", Boolean(found.saved) || card.classList.contains("answered"));
}

function lacking(form) {
  // What the rules will ask for anyway is asked for before it is sent.
  const answer = form.querySelector("input[name=answer]:checked");
  if (!answer) return "";
  const empty = (name) => !form.elements[name].value.trim();
  if (["not_applicable", "alternative"].includes(answer.value) && empty("reason")) return words.needsReason;
  if (answer.value === "planned" && empty("due")) return words.needsDate;
  return "";
}

async function save(form) {
  const hint = lacking(form);
  if (hint) { show(form, "pending", hint); return; }
  if (waiting.has(form)) { waiting.set(form, "again"); return; }
  waiting.set(form, "running");
  show(form, "busy", words.saving);
  try {
    const answer = await fetch(form.action, {
      method: "POST", body: new FormData(form), headers: { Accept: "application/json" }, credentials: "same-origin",
    });
    const found = await answer.json();
    show(form, found.saved ? "saved" : "failed", found.status);
    apply(form, found);
  } catch (error) {
    show(form, "failed", words.offline);
  }
  const again = waiting.get(form) === "again";
  waiting.delete(form);
  if (again && form.isConnected) save(form);
}

function autosaved(target) {
  const form = target.closest("form[data-autosave]");
  return form && (form.querySelector("input[type=radio]:checked") ? form : null);
}

document.addEventListener("change", (event) => {
  const form = autosaved(event.target);
  if (form) save(form);
});

document.addEventListener("input", (event) => {
  const form = autosaved(event.target);
  if (form && event.target.matches("textarea")) show(form, "busy", words.unsaved);
});

document.addEventListener("submit", (event) => {
  const form = event.target.closest("form[data-autosave]");
  if (!form) return;
  event.preventDefault();
  save(form);
});

window.addEventListener("beforeunload", (event) => {
  const typed = document.activeElement && document.activeElement.matches("textarea") && autosaved(document.activeElement);
  if (waiting.size || document.querySelector(".save.failed, .save.pending")) event.preventDefault();
  else if (typed && document.activeElement.value !== document.activeElement.defaultValue) document.activeElement.blur();
});
