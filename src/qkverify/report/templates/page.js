"use strict";
// Everything stands in the page without this script; it adds the panel behind a square, tabs, filters, tooltips
// and the copy button. Text from the records only ever becomes text, never markup.
(() => {
  const all = (query, root = document) => [...root.querySelectorAll(query)];
  const one = (query, root = document) => root.querySelector(query);
  const make = (tag, text = "", properties = {}) => Object.assign(document.createElement(tag), { textContent: text }, properties);

  // A square's laws, in a dialog whose address is the square's. Without the script that address leads to the first
  // counterexample of the square, so the squares are found by another name.
  const panel = one("dialog.panel"), data = panel && JSON.parse(one("#verdict-data").textContent);
  const squares = new Map(all("[data-cell]").map((square) => [square.dataset.cell, square]));
  const address = () => location.hash.slice(1);
  function openCell() {
    const id = address(), rows = data.cells[id], square = squares.get(id);
    if (!rows) return panel.open && panel.close();
    const said = (name) => square.closest(`[data-${name}]`)?.dataset[name];
    const family = said("family") || square.closest("table").tHead.rows[0].cells[square.cellIndex].firstChild.textContent;
    one("h3", panel).textContent = `${said("implementation")}: ${family}`;
    one(".where", panel).textContent = `${said("dtype")} on ${said("device")}`;
    one(".cards", panel).replaceChildren(...(data.cards[id] || []).map((card) => {
      const copy = document.getElementById(card).cloneNode(true);
      copy.removeAttribute("id");
      for (const named of all("[id]", copy)) named.removeAttribute("id");
      copy.hidden = false;
      return copy;
    }));
    one("tbody", panel).replaceChildren(...rows.map(([law, outcome, examples, margin, seconds, reason]) => {
      const [name, sentence, exact] = data.laws[law], line = make("tr"), head = make("th", "", { scope: "row" });
      head.append(make("code", name), make("small", sentence + (exact ? " (exact)" : "")));
      const said = data.outcomes[outcome], why = data.reasons[reason];
      const word = make("td", said, { className: said.replace(" ", "-") });
      if (why && said !== "failed") word.append(make("small", " " + why));
      line.append(head, word, ...[margin, examples || "", seconds].map((text) => make("td", text, { className: "number" })));
      return line;
    }));
    square.scrollIntoView({ block: "nearest", inline: "nearest" });  // what is behind the panel when it closes
    if (!panel.open) panel.showModal();
    panel.scrollTop = 0;
  }
  if (panel) {
    addEventListener("hashchange", openCell);
    addEventListener("popstate", openCell);
    document.addEventListener("click", (event) => {
      const link = event.target.closest("[data-cell] > a");
      if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();  // the browser would scroll down to the counterexample
      history.pushState(null, "", link.hash);
      openCell();
    });
    panel.addEventListener("close", () => {
      const id = address();
      if (!data.cells[id]) return;
      history.replaceState(null, "", location.pathname + location.search);
      one("a", squares.get(id)).focus();
    });
    panel.addEventListener("click", (event) => event.target === panel && panel.close());
    openCell();
    addEventListener("load", () => panel.open && squares.get(address())?.scrollIntoView({ block: "center" }));
  }

  // Copy buttons, in the dialog's clones too.
  for (const button of all(".copy")) button.hidden = false;
  document.addEventListener("click", async (event) => {
    if (!event.target.matches(".copy")) return;
    const code = one("code", event.target.parentElement);
    try { await navigator.clipboard.writeText(code.textContent); event.target.textContent = "Copied"; }
    catch { getSelection().selectAllChildren(code); }
  });

  // Tabs: the sections that stand one below the other, one at a time.
  for (const group of all(".tabs")) {
    const tabs = all(":scope > .tab", group);
    if (tabs.length < 2) continue;
    const list = make("div", "", { className: "tablist", role: "tablist" });
    const buttons = tabs.map((tab, i) => {
      const button = make("button", one("h3", tab).textContent.replace(/\s+/g, " ").trim(), { type: "button", role: "tab" });
      tab.id ||= `tab-${all(".tabs").indexOf(group)}-${i}`;
      tab.setAttribute("role", "tabpanel");
      button.setAttribute("aria-controls", tab.id);
      Object.assign(button.dataset, { device: tab.dataset.device, dtype: tab.dataset.dtype });
      delete tab.dataset.device; delete tab.dataset.dtype;  // the button is filtered, and its panel with it
      button.addEventListener("click", () => select(i));
      return button;
    });
    const select = (chosen, focus) => buttons.forEach((button, i) => {
      button.setAttribute("aria-selected", i === chosen);
      button.tabIndex = i === chosen ? 0 : -1;
      tabs[i].hidden = i !== chosen;
      if (focus && i === chosen) button.focus();
    });
    list.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key], shown = buttons.filter((button) => !button.hidden);
      if (!step) return;
      const next = shown[(shown.indexOf(document.activeElement) + step + shown.length) % shown.length];
      select(buttons.indexOf(next), true);
    });
    group.addEventListener("filtered", () => {
      const chosen = buttons.findIndex((button) => button.getAttribute("aria-selected") === "true" && !button.hidden);
      const next = chosen >= 0 ? chosen : buttons.findIndex((button) => !button.hidden);
      select(next);
    });
    list.append(...buttons);
    group.prepend(list);
    group.classList.add("live");
    select(Math.max(0, tabs.findIndex((tab) => /float32/.test(one("h3", tab).textContent))));
  }

  // Filters: whatever carries one of the names that are switched off is hidden, wherever it stands.
  const filters = one(".filters"), names = ["implementation", "dtype", "device"];
  function filter() {
    const off = Object.fromEntries(names.map((name) => [name, new Set(all(`input[name=${name}]:not(:checked)`, filters).map((box) => box.value))]));
    for (const item of all(names.map((name) => `[data-${name}]`).join()))
      item.toggleAttribute("hidden", names.some((name) => off[name].has(item.dataset[name])));  // SVG has no .hidden
    for (const group of all(".tabs.live")) group.dispatchEvent(new Event("filtered"));
    const hidden = names.reduce((sum, name) => sum + off[name].size, 0);
    one(".count", filters).textContent = hidden ? `${hidden} hidden` : "";
  }
  if (filters && one("fieldset", filters)) {
    filters.hidden = false;
    filters.addEventListener("change", filter);
    filters.addEventListener("reset", () => setTimeout(filter));
  }

  // Tooltips: under the pointer, and by arrow keys on a chart that has the focus.
  const tip = one(".tip");
  function show(mark) {
    for (const other of all("use.at")) other.classList.remove("at");
    tip.hidden = !mark;
    if (!mark) return;
    mark.classList.add("at");
    place(mark.dataset.tip, mark.getBoundingClientRect());
  }
  function place(text, box) {
    tip.hidden = false;
    tip.textContent = text;
    const size = tip.getBoundingClientRect();
    tip.style.left = Math.max(8, Math.min(innerWidth - size.width - 8, box.left + box.width / 2 - size.width / 2)) + "px";
    tip.style.top = (box.top > size.height + 14 ? box.top - size.height - 8 : box.bottom + 8) + "px";
  }
  function nearest(chart, event) {
    let best = null, least = 24;
    for (const mark of all("[data-tip]", chart)) {
      const box = mark.getBoundingClientRect();
      const far = Math.hypot(box.left + box.width / 2 - event.clientX, box.top + box.height / 2 - event.clientY);
      if (box.width && far < least) [best, least] = [mark, far];
    }
    return best;
  }
  for (const chart of all(".chart")) {
    chart.addEventListener("pointermove", (event) => show(nearest(chart, event)));
    chart.addEventListener("pointerdown", (event) => show(nearest(chart, event)));
    chart.addEventListener("pointerleave", () => show(null));
    chart.addEventListener("blur", () => show(null));
    chart.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (event.key === "Escape") show(null);
      if (!step) return;
      event.preventDefault();
      const marks = all("use[data-tip]", chart).filter((mark) => mark.getBoundingClientRect().width);
      const at = marks.findIndex((mark) => mark.classList.contains("at"));
      show(marks[at < 0 ? (step > 0 ? 0 : marks.length - 1) : (at + step + marks.length) % marks.length]);
    });
  }
  // Pictures: the cell under the pointer, its value out of two hexadecimal digits.
  for (const chart of all(".heat[data-values]")) {
    const cells = one("image", chart), names = JSON.parse(chart.closest("[data-names]")?.dataset.names || "null");
    const { columns, count, low, high, row, column } = chart.dataset;
    chart.addEventListener("pointerleave", () => show(null));
    chart.addEventListener("pointermove", (event) => {
      const box = cells.getBoundingClientRect();
      const j = Math.floor((event.clientX - box.left) / box.width * columns), i = Math.floor((event.clientY - box.top) / box.height * count);
      if (i < 0 || j < 0 || i >= count || j >= columns) return show(null);
      const at = 2 * (i * columns + j), share = parseInt(chart.dataset.values.slice(at, at + 2), 16) / 255;
      const value = (+low + share * (high - low)).toFixed(2);
      const where = names ? `${names[i]} \u2192 ${names[j]}` : `${row} ${i}, ${column} ${j}`;
      place(`${where}: ${value}`, { left: event.clientX, top: event.clientY - 6, width: 0, bottom: event.clientY + 14 });
    });
  }
  addEventListener("scroll", () => show(null), { passive: true });

  // A box that is wider than the screen says so, until it is scrolled to its end.
  const boxes = all(".scroll, .contents > div");
  function mark(box) {
    const wider = box.scrollWidth > box.clientWidth + 1;
    box.classList.toggle("more", wider && box.scrollLeft + box.clientWidth < box.scrollWidth - 2);
    const sign = box.nextElementSibling;
    if (sign?.classList.contains("scroll-sign")) sign.hidden = !wider;
    else if (wider && box.classList.contains("scroll")) box.after(make("p", "wider than the screen: scroll sideways \u2192", { className: "scroll-sign" }));
  }
  const resized = new ResizeObserver((seen) => seen.forEach(({ target }) => mark(target)));
  for (const box of boxes) {
    resized.observe(box);
    box.addEventListener("scroll", () => mark(box), { passive: true });
  }

  // The contents mark the section in view.
  const links = new Map(all(".contents a").map((link) => [link.hash.slice(1), link]));
  const watch = new IntersectionObserver((seen) => seen.forEach(({ target, isIntersecting }) => {
    if (!isIntersecting) return;
    for (const link of links.values()) link.removeAttribute("aria-current");
    const link = links.get(target.id), bar = link.closest("div");
    link.setAttribute("aria-current", "location");
    bar.scrollLeft = link.offsetLeft - bar.offsetLeft - (bar.clientWidth - link.offsetWidth) / 2;
  }), { rootMargin: "-20% 0px -70% 0px" });
  for (const id of links.keys()) watch.observe(document.getElementById(id));
})();
