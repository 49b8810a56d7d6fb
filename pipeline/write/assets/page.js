// What every page does: counts its own errors, sorts tables, opens everything for paper.
(() => {
  'use strict';
  const root = document.documentElement;
  root.dataset.errors = '0';
  const count = () => { root.dataset.errors = String(Number(root.dataset.errors) + 1); };
  addEventListener('error', count, true);
  addEventListener('unhandledrejection', count);
  document.addEventListener('securitypolicyviolation', count);

  const collator = new Intl.Collator('en', {numeric: true});
  const number = (text) => {
    const value = Number(text.replace(/[, ]/g, ''));
    return text === '' || Number.isNaN(value) ? -Infinity : value;
  };

  function sort(head, column, down) {
    const body = head.closest('table').tBodies[0];
    const numeric = head.classList.contains('n');
    const keyed = [...body.rows].map((row) => [row.cells[column].textContent.trim(), row]);
    keyed.sort(([a], [b]) => (numeric ? number(a) - number(b) : collator.compare(a, b)) * (down ? -1 : 1));
    body.append(...keyed.map(([, row]) => row));
  }

  for (const button of document.querySelectorAll('button.sort')) {
    const head = button.closest('th');
    const heads = [...head.parentElement.cells];
    button.addEventListener('click', () => {
      const down = head.getAttribute('aria-sort') === 'ascending';
      for (const other of heads) other.removeAttribute('aria-sort');
      head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      sort(head, heads.indexOf(head), down);
    });
  }

  addEventListener('beforeprint', () => {
    for (const part of document.querySelectorAll('details')) part.open = true;
  });
  root.dataset.ready = 'page';
})();
