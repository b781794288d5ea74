// Saves the form while it is filled in, counts active time, and submits.
//
// One request at a time: a draft is sent again, unchanged, until the server
// has acknowledged it, so that a lost answer never looks like another page's
// change. Until then the browser keeps a copy.
"use strict";

(() => {
  const form = document.getElementById("work");
  if (!form) return;
  const path = form.dataset.path;
  const copyKey = `draft:${form.dataset.user}:${path}`;
  const idleSeconds = Number(form.dataset.idle);
  const locked = "locked" in form.dataset;
  const status = document.getElementById("status");
  const conflict = document.getElementById("conflict");
  const PAUSE = 500; // milliseconds without a key before a draft is saved
  const BEAT = 15; // active seconds after which the server is informed
  const OWN = new Set(["csrf", "revision", "seconds", "instructions_version"]);

  let active = 0; // seconds that the server does not know of
  let lastActivity = Date.now();
  let timer = null;
  let pending = null; // the draft that is not acknowledged
  let refused = null; // a draft that the server does not accept
  let failures = 0;
  let theirs = null; // what another page has saved
  let leaving = false;

  const fields = () => {
    const entries = [...new FormData(form)].filter(([k]) => !OWN.has(k));
    return new URLSearchParams(entries).toString();
  };
  let acknowledged = fields();

  const say = (text, bad = false) => {
    status.textContent = text;
    status.classList.toggle("bad", bad);
  };

  // All that the form has, also what was typed after the draft was sent.
  const keepCopy = () => {
    try {
      const copy = { revision: form.elements.revision.value, text: fields() };
      localStorage.setItem(copyKey, JSON.stringify(copy));
    } catch {
      // Private windows may refuse; the server's draft remains.
    }
  };
  const dropCopy = () => {
    try {
      localStorage.removeItem(copyKey);
    } catch {
      // As above.
    }
  };

  const post = async (url, text, seconds) => {
    const body = new URLSearchParams(text);
    body.set("revision", form.elements.revision.value);
    body.set("seconds", String(seconds));
    body.set("instructions_version", form.elements.instructions_version.value);
    const response = await fetch(url, {
      method: "POST",
      body,
      // Outlives the page, for which browsers accept 64 KiB.
      keepalive: body.toString().length < 60000,
      headers: {
        Accept: "application/json",
        "X-CSRF-Token": form.elements.csrf.value,
      },
    });
    const answer = await response.json().catch(() => ({}));
    return [response.status, answer];
  };

  const schedule = (milliseconds) => {
    clearTimeout(timer);
    timer = setTimeout(save, milliseconds);
  };

  const failed = (message) => {
    failures += 1;
    say(message, true);
    schedule(Math.min(1000 * 2 ** (failures - 1), 15000));
  };

  // Saves the draft. Returns "saved" once all of the form is saved, "changed"
  // where more was typed meanwhile, and "failed".
  const saveNow = async () => {
    if (theirs) return "failed";
    pending ??= fields();
    if (pending !== acknowledged) say("Saving …");
    const seconds = active;
    let code, answer;
    try {
      [code, answer] = await post(`${path}/draft`, pending, seconds);
    } catch {
      keepCopy();
      failed("Not saved; trying again");
      return "failed";
    }
    if (code === 409 && answer.draft) {
      keepCopy();
      showConflict(answer);
      return "failed";
    }
    if (code === 401 || code === 403) {
      refused = pending;
      keepCopy();
      say("Not saved: log in on another page, then reload this one", true);
      return "failed";
    }
    if (code >= 500 || code === 429) {
      keepCopy();
      failed("Not saved; trying again");
      return "failed";
    }
    if (code !== 200) {
      say(answer.error || `Not saved (${code})`, true);
      refused = pending;
      pending = null;
      return "failed";
    }
    failures = 0;
    refused = null;
    active = Math.max(0, active - seconds);
    form.elements.revision.value = answer.revision;
    acknowledged = pending;
    pending = null;
    const isWhole = fields() === acknowledged;
    if (isWhole) {
      dropCopy();
      say(answer.has_place ? "Saved" : "Saved, but others have done this item",
          !answer.has_place);
    } else {
      keepCopy();
      say("Saving …");
    }
    form.dispatchEvent(new CustomEvent("saved", {
      detail: { tokens: answer.tokens, text: acknowledged },
    }));
    return isWhole ? "saved" : "changed";
  };

  let running = null;
  const save = () => {
    clearTimeout(timer);
    running ??= saveNow().finally(() => {
      running = null;
      const isSent = [acknowledged, refused].includes(fields());
      if (!pending && !theirs && !isSent) schedule(PAUSE);
    });
    return running;
  };

  const showConflict = (answer) => {
    theirs = answer;
    conflict.hidden = false;
    say("Not saved", true);
    conflict.scrollIntoView({ block: "center" });
    document.getElementById("take-theirs").focus();
  };
  document.getElementById("take-theirs").addEventListener("click", () => {
    dropCopy();
    leaving = true;
    location.reload();
  });
  document.getElementById("keep-mine").addEventListener("click", () => {
    form.elements.revision.value = theirs.revision;
    theirs = pending = null;
    acknowledged = null;
    conflict.hidden = true;
    save();
  });

  // Errors

  const summary = document.getElementById("errors");
  const clearErrors = () => {
    for (const element of form.querySelectorAll(".problem")) element.remove();
    for (const element of form.querySelectorAll("[aria-invalid]")) {
      element.removeAttribute("aria-invalid");
      element.removeAttribute("aria-describedby");
    }
    summary.hidden = true;
  };
  const showErrors = (errors) => {
    clearErrors();
    const list = summary.querySelector("ul");
    list.replaceChildren();
    for (const { field, label, message } of errors) {
      const link = document.createElement("a");
      link.href = `#${field}`;
      link.textContent = label + message;
      const entry = document.createElement("li");
      entry.append(link);
      list.append(entry);
      const element = document.getElementById(field);
      if (!element) continue;
      const text = document.createElement("div");
      text.className = "problem";
      text.id = `problem-${field}`;
      text.textContent = message;
      element.setAttribute("aria-invalid", "true");
      element.setAttribute("aria-describedby", text.id);
      if (element.matches("fieldset")) element.append(text);
      else element.closest(".rank, .field").after(text);
    }
    summary.hidden = false;
    summary.scrollIntoView({ block: "center" });
    summary.focus({ preventScroll: true });
  };

  // A link to a group of fields focuses the first of them.
  summary.addEventListener("click", (event) => {
    const link = event.target.closest("a");
    const target = link && document.getElementById(link.hash.slice(1));
    if (!target) return;
    event.preventDefault();
    const field = target.matches("fieldset")
      ? target.querySelector("input, textarea")
      : target;
    target.scrollIntoView({ block: "center" });
    field?.focus({ preventScroll: true });
  });

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = document.getElementById("submit");
    if (button.getAttribute("aria-busy") === "true") return;
    button.setAttribute("aria-busy", "true");
    try {
      if (fields() !== acknowledged || pending) {
        let outcome = "changed";
        while (outcome === "changed") outcome = await save();
        if (outcome === "failed") return;
      }
      say("Submitting …");
      const [code, answer] = await post(`${path}/submit`, fields(), active);
      if (code === 200) {
        leaving = true;
        dropCopy();
        location.assign(answer.next);
      } else if (answer.errors) {
        say("Draft saved");
        showErrors(answer.errors);
      } else if (code === 409 && answer.draft) {
        showConflict(answer);
      } else {
        say(answer.error || `Not submitted (${code})`, true);
      }
    } catch {
      keepCopy();
      say("Not submitted: the server does not answer. Try again.", true);
    } finally {
      button.removeAttribute("aria-busy");
    }
  });

  if (locked) return;

  const signs = ["keydown", "pointerdown", "pointermove", "wheel", "touchmove"];
  for (const name of signs) {
    const note = () => (lastActivity = Date.now());
    document.addEventListener(name, note, { passive: true });
  }
  form.addEventListener("input", () => schedule(PAUSE));
  form.addEventListener("change", () => schedule(PAUSE));
  setInterval(() => {
    const idle = Date.now() - lastActivity > 1000 * idleSeconds;
    if (document.visibilityState === "visible" && !idle) active += 1;
    if (active >= BEAT && !running && !failures && refused === null) save();
  }, 1000);
  window.addEventListener("pagehide", () => {
    if (leaving || theirs || fields() === acknowledged) return;
    keepCopy();
    save();
  });

  // A copy of what was never saved, from before a crash.
  const restore = (text) => {
    const values = new URLSearchParams(text);
    for (const element of form.elements) {
      if (!element.name || OWN.has(element.name)) continue;
      if (element.type === "checkbox") {
        element.checked = values.has(element.name);
      } else if (element.type === "radio") {
        element.checked = values.get(element.name) === element.value;
      } else {
        element.value = values.get(element.name) ?? "";
      }
    }
    form.dispatchEvent(new Event("restored"));
  };
  let copy = null;
  try {
    copy = JSON.parse(localStorage.getItem(copyKey));
  } catch {
    dropCopy();
  }
  if (copy && copy.text !== acknowledged) {
    document.addEventListener("DOMContentLoaded", () => {
      restore(copy.text);
      const revision = form.elements.revision.value;
      if (copy.revision === revision) save();
      else showConflict({ revision });
    });
  } else if (copy) {
    dropCopy();
  }
})();
