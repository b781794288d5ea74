// Shows the fields that the kind of prompt needs, and counts what was written.
"use strict";

(() => {
  const form = document.getElementById("work");
  const kinds = form.elements.kind;
  const examples = [...document.querySelectorAll("[data-example]")];
  const add = document.getElementById("add-example");
  let shown = 3;
  let tokens = {}; // counted by the server with the model's tokenizer

  const hasText = (row) =>
    [...row.querySelectorAll("textarea")].some((field) => field.value);

  const show = () => {
    const fewShot = kinds?.value === "few_shot";
    if (kinds) {
      form.querySelector("#examples").hidden = !fewShot;
      form.querySelector("[data-field=answer]").hidden = fewShot;
      examples.forEach((row, i) => {
        if (hasText(row)) shown = Math.max(shown, i + 1);
      });
      examples.forEach((row, i) => (row.hidden = i >= shown));
      add.hidden = shown >= examples.length;
    }
    for (const element of form.querySelectorAll("[data-count-of]")) {
      const name = element.dataset.countOf;
      const text = form.elements[name].value;
      const count = tokens[name];
      element.textContent = text
        ? `${[...text].length.toLocaleString("en")} characters` +
          (count?.text === text ? `, ${count.count.toLocaleString("en")} tokens` : "")
        : "";
    }
  };

  add?.addEventListener("click", () => {
    shown += 1;
    show();
    examples[shown - 1].querySelector("textarea").focus();
  });
  form.addEventListener("input", show);
  form.addEventListener("restored", show);
  form.addEventListener("saved", (event) => {
    const saved = new URLSearchParams(event.detail.text);
    tokens = {};
    for (const [name, count] of Object.entries(event.detail.tokens ?? {})) {
      tokens[name] = { text: saved.get(name), count };
    }
    show();
  });
  show();
})();
