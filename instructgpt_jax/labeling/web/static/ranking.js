// Ranks by drag and drop, number keys and arrow keys. The lists "rank-0",
// "rank-1" … of the form have the ranks; the board shows and changes them.
"use strict";

(() => {
  const form = document.getElementById("work");
  const board = document.getElementById("board");
  const announce = document.getElementById("announce");
  const cards = [...document.querySelectorAll(".card")];
  const chips = [...board.querySelectorAll(".chip")];
  const lanes = [...board.querySelectorAll(".chips")];
  const selects = cards.map((_, i) => form.elements[`rank-${i}`]);
  const locked = "locked" in form.dataset;
  const letter = (index) => String.fromCharCode(65 + index);
  const history = []; // [index, rank before]

  const rank = (index) => Number(selects[index].value);

  const describe = (index) => {
    const value = rank(index);
    if (!value) return `Answer ${letter(index)}, no rank`;
    const tied = chips.filter((_, i) => i !== index && rank(i) === value);
    const names = tied.map((chip) => letter(Number(chip.dataset.index)));
    const tie = names.length ? `, tied with ${names.join(" and ")}` : "";
    return `Answer ${letter(index)}, rank ${value} of ${cards.length}${tie}`;
  };

  const show = () => {
    const focused = document.activeElement;
    for (const lane of lanes) {
      const value = Number(lane.dataset.rank);
      const content = chips.filter((_, i) => rank(i) === value);
      if (content.some((chip, i) => lane.children[i] !== chip)) {
        lane.append(...content);
      }
    }
    chips.forEach((chip, i) => chip.setAttribute("aria-label", describe(i)));
    if (chips.includes(focused)) focused.focus();
  };

  const set = (index, value, remember = true) => {
    if (locked) return;
    const bounded = Math.max(0, Math.min(cards.length, value));
    if (bounded === rank(index)) return;
    if (remember) history.push([index, rank(index)]);
    selects[index].value = bounded ? String(bounded) : "";
    selects[index].dispatchEvent(new Event("input", { bubbles: true }));
    announce.textContent = describe(index);
  };

  const undo = () => {
    const last = history.pop();
    if (!last) return;
    set(last[0], last[1], false);
    show();
  };

  const move = (index, step) => {
    const value = rank(index);
    if (value) set(index, Math.max(1, value + step));
    else set(index, step < 0 ? 1 : cards.length);
  };

  const focusCard = (index) => {
    cards[index]?.focus({ preventScroll: true });
    cards[index]?.scrollIntoView({ block: "nearest" });
  };

  form.addEventListener("input", show);
  form.addEventListener("restored", show);
  document.addEventListener("DOMContentLoaded", show);

  document.addEventListener("keydown", (event) => {
    if (window.isTyping(event) || document.querySelector("dialog[open]")) return;
    if (event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      undo();
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const target = event.target;
    const holder = target.closest?.("[data-index]");
    const index = holder ? Number(holder.dataset.index) : -1;
    const isChip = chips.includes(target);
    const isCard = cards.includes(target);
    const digit = /^Digit(\d)$/.exec(event.code)?.[1] ?? event.key;
    if (index >= 0 && /^\d$/.test(digit) && target.type !== "radio") {
      event.preventDefault();
      const value = Number(digit);
      if (event.shiftKey) {
        const radios = form.elements[`overall-${index}`];
        const radio = [...radios].find((r) => Number(r.value) === value);
        if (radio && !locked) {
          radio.checked = true;
          radio.dispatchEvent(new Event("input", { bubbles: true }));
          announce.textContent =
            `Answer ${letter(index)}, overall quality ${value}`;
        }
      } else if (value <= cards.length) set(index, value);
      return;
    }
    if ((isChip || isCard) && /^(Delete|Backspace)$/.test(event.key)) {
      set(index, 0);
    } else if ((isChip || isCard) && event.key === "ArrowUp") {
      move(index, -1);
    } else if ((isChip || isCard) && event.key === "ArrowDown") {
      move(index, 1);
    } else if (isChip && event.key === "ArrowLeft") {
      move(index, -1);
    } else if (isChip && event.key === "ArrowRight") {
      move(index, 1);
    } else if (isCard && event.key === "ArrowLeft") {
      focusCard(index - 1);
    } else if (isCard && event.key === "ArrowRight") {
      focusCard(index + 1);
    } else if (/^[a-i]$/.test(event.key)) {
      const next = event.key.charCodeAt(0) - 97;
      if (next >= cards.length) return;
      focusCard(next);
    } else if (event.key === "p") {
      document.querySelector(".prompt").focus();
    } else if (event.key === "n") {
      form.elements.notes.focus();
    } else return;
    event.preventDefault();
  });

  // "I can't judge this" asks for a reason, and for nothing else.
  const box = document.getElementById("cannot_judge");
  const reason = document.getElementById("cannot-judge-reason");
  const toggle = () => (reason.hidden = !box.checked);
  box.addEventListener("change", () => {
    toggle();
    if (box.checked) reason.querySelector("textarea").focus();
  });
  form.addEventListener("restored", toggle);
  toggle();

  show();
  board.hidden = false;
  if (locked) return;
  for (const lane of lanes) {
    window.Sortable.create(lane, {
      group: "ranks",
      animation: 0,
      forceFallback: true, // the same on touch screens and with a mouse
      fallbackOnBody: true,
      onEnd: (event) => {
        const index = Number(event.item.dataset.index);
        set(index, Number(event.to.dataset.rank));
        show();
      },
    });
  }
})();
