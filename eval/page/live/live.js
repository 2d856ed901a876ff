"use strict";
// Follows the page's own server: asks whether the page has changed, and changes what differs in place, so that
// the reader's zoom, hidden designs, open sections and place on the page stay. script.js has the drawing.
const ASK_MS = 2000, LOST = "the server has ended, or cannot be reached";
const bar = document.createElement("aside"), now = document.createElement("p"), news = document.createElement("div");
const look = document.createElement("style");
look.textContent = `
  body { padding-bottom: 64px; }
  #live { position: fixed; z-index: 9; right: 12px; bottom: 12px; max-width: min(460px, calc(100vw - 24px)); padding: 7px 13px; border: 1px solid var(--line); border-radius: 9px;
    background: var(--card); color: var(--soft); font-size: 13px; line-height: 1.45; box-shadow: 0 3px 14px #0003; overflow-wrap: anywhere; }
  #live p { margin: 0; } #live .problem { color: var(--warn); } #live [role=status] p { color: var(--ink); }
  @media print { #live { display: none; } body { padding-bottom: 0; } }`;
bar.id = "live";
bar.setAttribute("aria-label", "How current this page is");
news.setAttribute("role", "status"); // ends of runs are read out, times are not
bar.append(now, news);
document.head.append(look);
document.body.append(bar);
root.style.overflowAnchor = "none"; // the reader's place is kept by hand, in every browser

const packs = "DecompressionStream" in window;
let shown = null, updated = 0, lost = false, busy = false;

const clock = seconds => new Date(seconds * 1000).toLocaleTimeString("en-GB");
const say = state => {
  const runs = state.under_way === 1 ? "1 run under way" : `${state.under_way || "no"} runs under way`;
  now.textContent = lost ? `${LOST}; this is the page of ${clock(updated)}` : `updated ${clock(state.updated)}, ${runs}`;
  now.classList.toggle("problem", lost);
  const sentences = [...(state.problem ? [state.problem] : []), ...(state.ended || []).slice(-3)];
  if (news.dataset.said === JSON.stringify(sentences)) return;
  news.dataset.said = JSON.stringify(sentences);
  news.replaceChildren(...sentences.map(sentence => {
    const line = document.createElement("p");
    line.textContent = sentence;
    line.classList.toggle("problem", sentence === state.problem);
    return line;
  }));
};

// ---- what differs ----
const keyOf = node => node.matches("section, figure") ? node.id : "";
const same = (one, other) => one.tagName === other.tagName && keyOf(one) === keyOf(other);

// The children of a section, of its details and of main become those of the fresh one; what is there stays itself.
const patch = (there, fresh) => {
  const byKey = new Map([...there.children].filter(keyOf).map(child => [keyOf(child), child]));
  let at = 0;
  for (const wanted of [...fresh.children]) {
    const key = keyOf(wanted);
    let child = key ? byKey.get(key) : there.children[at];
    if (!child || !same(child, wanted)) {
      child = wanted;
      there.insertBefore(child, there.children[at] || null);
    } else {
      if (there.children[at] !== child) there.insertBefore(child, there.children[at]);
      renew(child, wanted);
    }
    at += 1;
  }
  while (there.children.length > at) there.lastElementChild.remove();
};

const renew = (child, wanted) => {
  if (child.matches("section")) {
    child.className = wanted.className;
    child.setAttribute("aria-label", wanted.getAttribute("aria-label"));
    patch(child, wanted);
  } else if (child.matches("details")) patch(child, wanted);
  else if (child.matches("figure")) {
    const box = child.querySelector(".chart"), next = wanted.querySelector(".chart");
    child.querySelector("figcaption").textContent = wanted.querySelector("figcaption").textContent;
    box.setAttribute("aria-label", next.getAttribute("aria-label"));
    box.dataset.height = next.dataset.height;
  } else if (child.outerHTML !== wanted.outerHTML) {
    const { scrollLeft } = child, focused = child === document.activeElement;
    child.replaceWith(wanted);
    wanted.scrollLeft = scrollLeft;
    if (focused) wanted.focus({ preventScroll: true });
  }
};

// ---- charts ----
const redo = (chart, content) => {
  if (JSON.stringify(chart.content) === JSON.stringify(content)) return;
  const legend = () => JSON.stringify([Object.keys(chart.content.axes), chart.content.data.map(trace => chart.group(trace))]);
  const before = legend();
  chart.content = content;
  if (!(chart.axis in content.axes)) chart.axis = Object.keys(content.axes)[0];
  if (legend() !== before) {
    const tools = chart.box.parentElement.querySelector(".tools");
    const off = new Map([...tools.querySelectorAll("button[aria-pressed]")].map(made => [made.textContent, made.getAttribute("aria-pressed")]));
    tools.replaceChildren();
    chart.addTools(tools);
    for (const made of tools.querySelectorAll("button[aria-pressed]")) if (off.has(made.textContent)) made.setAttribute("aria-pressed", off.get(made.textContent));
  }
  chart.draw();
};

const unpackText = async text => {
  const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
};

const redrawCharts = async packed => {
  contentsOf = packed ? JSON.parse(await unpackText(packed.textContent)) : {};
  for (const box of [...boxes]) if (!box.isConnected) {
    boxes.splice(boxes.indexOf(box), 1);
    if (drawn.delete(box)) Plotly.purge(box);
  }
  for (const box of document.querySelectorAll("[data-chart]")) {
    if (!boxes.includes(box)) boxes.push(box);
    if (drawn.has(box)) redo(drawn.get(box), contentsOf[box.dataset.chart]);
    else draw(box);
  }
};

// ---- contents ----
const renewContents = fresh => {
  const list = contents.querySelector("ol"), wanted = fresh.querySelector("#contents ol");
  if ([...list.querySelectorAll("a")].map(link => link.hash + link.textContent).join() !== [...wanted.querySelectorAll("a")].map(link => link.hash + link.textContent).join()) {
    list.replaceChildren(...wanted.children);
    links.clear();
    for (const link of list.querySelectorAll("a")) {
      const id = link.hash.slice(1);
      links.set(id, link);
      link.addEventListener("click", () => { unfold(id); if (narrow.matches) contents.open = false; });
    }
  }
  seen.disconnect();
  for (const id of links.keys()) seen.observe(document.getElementById(id));
};

const scripts = page => [...page.querySelectorAll("style, script:not([type])")].filter(one => one !== look).map(one => one.textContent.trim()).filter(text => text.length < 500000).join("");

const update = async () => {
  const answer = await fetch("/sections", { cache: "no-cache" });
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  const needsLibrary = fresh.querySelector("[data-chart]") && packs && root.dataset.charts !== "drawn";
  if (needsLibrary || own !== scripts(fresh)) return location.reload();
  const main = document.getElementById("main");
  const places = scrollY > 0 ? [...main.querySelectorAll("section > *, section > details > *")].map(block => [block, block.getBoundingClientRect()]) : [];
  document.title = fresh.title;
  document.querySelector("h1").textContent = fresh.querySelector("h1").textContent;
  const summary = document.querySelector("header > ul"), next = fresh.querySelector("header > ul");
  if (summary && next) summary.replaceWith(next);
  else if (next) document.querySelector("h1").after(next);
  else if (summary) summary.remove();
  patch(main, fresh.getElementById("main"));
  for (const details of document.querySelectorAll("section > details")) {
    details.ontoggle = () => { if (details.open) details.querySelectorAll("[data-chart]").forEach(draw); };
  }
  renewContents(fresh);
  if (packs) await redrawCharts(fresh.getElementById("charts"));
  // The first block in sight that is still there stays where it was.
  const kept = places.find(([block, box]) => box.bottom > 0 && box.height > 0 && block.isConnected);
  if (kept) scrollBy({ top: kept[0].getBoundingClientRect().top - kept[1].top, behavior: "instant" });
};

// ---- asking ----
const ask = async () => {
  const draws = boxes.length && packs && root.dataset.charts !== "drawn"; // script.js is at its first drawing
  if (document.hidden || busy || draws || root.classList.contains("paper")) return;
  busy = true;
  let state = null;
  try {
    state = await (await fetch("/state", { cache: "no-cache" })).json();
    lost = false;
    if (state.version !== shown) await update(); // the first time too: what changed since the page was loaded
    shown = state.version;
    updated = state.updated;
    say(state);
    root.dataset.version = shown;
  } catch (error) {
    if (state !== null) throw error; // ours, which the console shall tell
    lost = true;
    say({});
  } finally {
    busy = false;
  }
};
const own = scripts(document);
ask();
setInterval(ask, ASK_MS);
document.addEventListener("visibilitychange", ask);
