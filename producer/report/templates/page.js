"use strict";
// Filters the list of errors and shows it fifty at a time. Without it the whole list is there.
(() => {
  const form = document.getElementById("filter");
  if (!form) return;
  const rows = [...document.querySelectorAll("#mistakes > li")];
  const more = document.getElementById("more");
  const step = 50;
  let shown = step;

  const fits = (row, asked) =>
    ["kind", "source", "category"].every((name) => !form.elements[name].selectedIndex || row.dataset[name] === form.elements[name].value) &&
    (!asked || row.firstElementChild.textContent.toLowerCase().includes(asked));

  const apply = () => {
    const asked = form.elements.words.value.trim().toLowerCase();
    let found = 0;
    for (const row of rows) {
      row.hidden = !fits(row, asked) || ++found > shown;
    }
    more.hidden = found <= shown;
    document.getElementById("found").textContent = `${Math.min(found, shown)} of ${found}`;
  };

  for (const heard of ["input", "change"]) {
    form.addEventListener(heard, () => { shown = step; apply(); });
  }
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => { shown += step; apply(); });
  form.hidden = false;
  apply();
})();
