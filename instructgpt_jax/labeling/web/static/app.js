// What all pages share: dialogs, questions before what cannot be undone, and
// the keys ? and Escape.
"use strict";

(() => {
  const TEXT = "textarea, select, input:not([type=radio], [type=checkbox])";

  // Whether a key goes to a text field or a list.
  window.isTyping = (event) =>
    event.target instanceof Element && event.target.matches(TEXT);

  const open = (id) => {
    const dialog = document.getElementById(id);
    if (dialog && !dialog.open) dialog.showModal();
  };

  document.addEventListener("click", (event) => {
    const opener = event.target.closest("[data-opens]");
    if (opener) open(opener.dataset.opens);
    const closer = event.target.closest("[data-closes]");
    if (closer) document.getElementById(closer.dataset.closes).close();
    const copier = event.target.closest("[data-copies]");
    if (copier) {
      const field = document.getElementById(copier.dataset.copies);
      field.select();
      navigator.clipboard?.writeText(field.value).then(() => {
        copier.textContent = "Copied";
      });
    }
  });

  document.addEventListener("submit", (event) => {
    const question = event.target.dataset.confirm;
    if (question && !window.confirm(question)) event.preventDefault();
  });

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && window.isTyping(event)) {
      event.target.blur();
    } else if (event.key === "?" && !window.isTyping(event)) {
      event.preventDefault();
      open("shortcuts");
    } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      const form = document.getElementById("work");
      if (!form || "locked" in form.dataset) return;
      event.preventDefault();
      form.requestSubmit();
    }
  });

  document.getElementById("errors")?.focus();
})();
