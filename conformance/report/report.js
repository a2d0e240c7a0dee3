"use strict";
(() => {
  const rows = [...document.querySelectorAll("tr[data-clauses]")];
  const chips = [...document.querySelectorAll("button.chip")];
  const outcome = document.getElementById("outcome");
  const text = document.getElementById("text");
  const shown = document.getElementById("shown");
  let clause = "";
  const apply = () => {
    const word = text.value.trim().toLowerCase();
    let count = 0;
    for (const row of rows) {
      const hide =
        (clause && !row.dataset.clauses.split(" ").includes(clause)) ||
        (outcome.value && row.dataset.outcome !== outcome.value) ||
        (word && !row.textContent.toLowerCase().includes(word));
      row.hidden = Boolean(hide);
      count += hide ? 0 : 1;
    }
    shown.value = `${count} of ${rows.length}`;
    for (const chip of chips) chip.setAttribute("aria-pressed", chip.dataset.clause === clause);
  };
  for (const chip of chips) {
    chip.addEventListener("click", () => {
      clause = clause === chip.dataset.clause ? "" : chip.dataset.clause;
      apply();
    });
  }
  outcome.addEventListener("change", apply);
  text.addEventListener("input", apply);
  const wanted = decodeURIComponent(location.hash.slice(1));
  if (chips.some((chip) => chip.dataset.clause === wanted)) clause = wanted;
  apply();
})();
