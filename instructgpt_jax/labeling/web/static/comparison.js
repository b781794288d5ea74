// Number keys choose the confidence.
"use strict";

document.addEventListener("keydown", (event) => {
  const plain = !event.ctrlKey && !event.metaKey && !event.altKey;
  const form = document.getElementById("work");
  if (!plain || window.isTyping(event) || "locked" in form.dataset) return;
  if (document.querySelector("dialog[open]")) return;
  if (/^[1-9]$/.test(event.key)) {
    const radio = [...form.elements.confidence].find(
      (element) => element.value === event.key,
    );
    radio.checked = true;
    radio.focus();
    radio.dispatchEvent(new Event("input", { bubbles: true }));
  } else if (/^[ab]$/.test(event.key)) {
    document.getElementById(`answer-${event.key === "a" ? 0 : 1}`).focus();
  } else if (event.key === "n") {
    event.preventDefault();
    form.elements.notes.focus();
  }
});
