"use strict";
const root = document.documentElement;
const dark = matchMedia("(prefers-color-scheme: dark)"), paper = matchMedia("print"), coarse = matchMedia("(pointer: coarse)");
const narrow = matchMedia("(max-width: 900px)"), still = matchMedia("(prefers-reduced-motion: reduce)");
const NARROW = 560; // px of a chart that has a phone's width
const PANEL = 290; // px that a panel of a chart needs

// ---- contents ----
const contents = document.getElementById("contents");
const links = new Map([...contents.querySelectorAll("a")].map(link => [link.hash.slice(1), link]));
const fold = () => { contents.open = !narrow.matches; };
fold();
narrow.addEventListener("change", fold);
const unfold = id => {
  const section = document.getElementById(id), details = section && section.querySelector(":scope > details");
  if (details) details.open = true;
};
for (const [id, link] of links) link.addEventListener("click", () => { unfold(id); if (narrow.matches) contents.open = false; });
if (location.hash) unfold(location.hash.slice(1));
const seen = new IntersectionObserver(entries => {
  for (const entry of entries) if (entry.isIntersecting) {
    for (const link of links.values()) link.removeAttribute("aria-current");
    links.get(entry.target.id).setAttribute("aria-current", "true");
  }
}, { rootMargin: "-10% 0px -80% 0px" });
for (const id of links.keys()) seen.observe(document.getElementById(id));

// ---- colours ----
const resolve = value => {
  if (typeof value === "string") {
    const found = value.match(/^var\((--[\w-]+)\)$/);
    return found ? getComputedStyle(root).getPropertyValue(found[1]).trim() : value;
  }
  if (Array.isArray(value)) return typeof value[0] === "number" ? value : value.map(resolve);
  if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, resolve(inner)]));
  return value;
};
const isObject = value => value && typeof value === "object" && !Array.isArray(value);
const under = (base, over) => {
  const merged = { ...base };
  for (const [key, value] of Object.entries(over)) merged[key] = isObject(value) && isObject(base[key]) ? under(base[key], value) : value;
  return merged;
};

// ---- a chart ----
class Chart {
  constructor(box, content) {
    this.box = box;
    this.content = content;
    this.hidden = new Set();
    this.log = { x: false, y: false };
    this.axis = Object.keys(content.axes)[0];
    this.whole = false;
    this.cursor = 0.5;
    box.replaceChildren();
    box.style.minHeight = "";
    this.addTools(box.parentElement.querySelector(".tools"));
    box.addEventListener("keydown", event => this.onKey(event));
    this.draw();
    new ResizeObserver(() => { if (Math.abs(box.clientWidth - this.width) > 1) this.draw(); }).observe(box);
  }

  group(trace) { return trace.showlegend === false && !trace.legendgroup ? "" : trace.legendgroup || trace.name || ""; }

  data() {
    const others = this.content.axes[this.axis];
    return resolve(this.content.data).map((trace, number) => ({
      ...trace,
      ...(others ? { x: others[number] } : {}),
      visible: this.hidden.has(this.group(trace)) ? false : trace.visible ?? true,
    }));
  }

  layout() {
    // Plotly writes into what it is given.
    const own = resolve(structuredClone(this.content.layout)), small = this.width < NARROW;
    const axis = resolve({
      gridcolor: "var(--line)", linecolor: "var(--soft)", tickcolor: "var(--soft)", zerolinecolor: "var(--soft)", zerolinewidth: 1,
      automargin: true, ticks: "outside", ticklen: 4, showline: true, tickfont: { size: small ? 11 : 12 }, title: { standoff: 8, font: { size: small ? 12 : 13 } },
      ...(coarse.matches ? { fixedrange: true } : {}),
    });
    const theme = resolve({
      font: { family: "system-ui, sans-serif", size: 12, color: "var(--ink)" },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      hoverlabel: { bgcolor: "var(--card)", bordercolor: "var(--line)", font: { size: small ? 11 : 12, color: "var(--ink)" }, namelength: small ? 18 : 40 },
      margin: { l: 12, r: 12, t: 12, b: 12 },
      hovermode: this.content.data.every(trace => (trace.type || "scatter") === "scatter") ? "x unified" : "closest",
      hoverdistance: 60, dragmode: coarse.matches ? false : "zoom", xaxis: axis, yaxis: axis,
    });
    for (const key of Object.keys(own)) if (/^[xy]axis\d+$/.test(key)) theme[key] = axis;
    const layout = under(theme, own);
    layout.showlegend = false; // the buttons above are the legend
    layout.width = this.width;
    layout.height = Number(this.box.dataset.height);
    if (layout.grid) this.arrange(layout);
    layout.uirevision = "kept";
    const [first] = Object.keys(this.content.axes);
    if (this.axis) layout.xaxis = under(layout.xaxis, { title: { text: this.axis } });
    // A range belongs to the quantity and the scale that it was given for.
    const free = key => this.whole && !own[key]?.fixedrange;
    if (this.axis !== first || free("xaxis") || this.log.x) layout.xaxis = { ...layout.xaxis, range: undefined, autorange: true };
    if (free("yaxis")) layout.yaxis = { ...layout.yaxis, range: undefined, autorange: true };
    for (const letter of "xy") {
      const key = letter + "axis";
      if (!this.log[letter]) continue;
      const range = layout[key].range;
      layout[key] = { ...layout[key], type: "log", dtick: undefined, tickvals: undefined };
      const usable = letter === "y" && range && Math.min(...range) > 0;
      layout[key].range = usable ? range.map(Math.log10) : undefined;
      layout[key].autorange = !usable;
    }
    return layout;
  }

  // Panels stand one below the other in the figure: here side by side, where each has room.
  arrange(layout) {
    const { rows: panels, ygap } = layout.grid, around = layout.margin.t + layout.margin.b;
    const columns = Math.max(1, Math.min(panels, Math.floor(layout.width / PANEL))), rows = Math.ceil(panels / columns);
    layout.height = around + (layout.height - around) / (panels - ygap) * (rows - ygap);
    layout.grid = { ...layout.grid, rows, columns };
  }

  draw() {
    this.width = this.box.clientWidth;
    if (!this.width) return;
    const config = { displayModeBar: false, responsive: false, scrollZoom: false, doubleClick: "reset", showTips: false };
    Plotly.react(this.box, this.data(), this.layout(), config);
  }

  // Zoom of the reader's is lost: it was for other quantities.
  redraw() { Plotly.purge(this.box); this.draw(); }

  addTools(tools) {
    const group = (label, ...buttons) => {
      const div = document.createElement("div");
      div.setAttribute("role", "group");
      div.setAttribute("aria-label", label);
      div.append(...buttons);
      tools.append(div);
      return div;
    };
    const button = (text, pressed, click) => {
      const made = document.createElement("button");
      made.type = "button";
      made.textContent = text;
      if (pressed !== null) made.setAttribute("aria-pressed", String(pressed));
      made.addEventListener("click", () => click(made));
      return made;
    };
    const titles = Object.keys(this.content.axes);
    if (titles.length > 1) {
      const choices = titles.map(title => button(`over ${title}`, title === this.axis, () => {
        this.axis = title;
        for (const choice of choices) choice.setAttribute("aria-pressed", String(choice.textContent === `over ${title}`));
        this.redraw();
      }));
      group("Horizontal axis", ...choices);
    }
    const scales = [...this.content.logs].map(letter => button(letter === "x" ? "log horizontal" : "log vertical", false, made => {
      this.log[letter] = !this.log[letter];
      made.setAttribute("aria-pressed", String(this.log[letter]));
      this.redraw();
    }));
    const layout = this.content.layout, all = [];
    if ([layout.xaxis, layout.yaxis].some(axis => axis?.range && !axis.fixedrange)) all.push(this.all = button("show all", false, made => {
      this.whole = !this.whole;
      made.setAttribute("aria-pressed", String(this.whole));
      this.redraw();
    }));
    const zooms = this.content.data.some(trace => ["scatter", "scattergl", "bar"].includes(trace.type || "scatter")) && layout.xaxis?.fixedrange !== true;
    const reset = zooms ? [button("reset zoom", null, () => this.reset())] : [];
    if (scales.length + all.length + reset.length) group("Scale", ...scales, ...all, ...reset);
    const groups = new Map();
    for (const trace of this.content.data) {
      const name = this.group(trace), colour = trace.line?.color || trace.marker?.color || trace.fillcolor;
      if (name && !groups.has(name) && layout.showlegend !== false) groups.set(name, typeof colour === "string" ? colour : "var(--soft)");
    }
    if (groups.size) group("Shown", ...[...groups].map(([name, colour]) => {
      const made = button(name, true, () => {
        this.hidden.has(name) ? this.hidden.delete(name) : this.hidden.add(name);
        made.setAttribute("aria-pressed", String(!this.hidden.has(name)));
        this.draw();
      });
      const swatch = document.createElement("i");
      swatch.style.setProperty("--swatch", colour);
      made.prepend(swatch);
      return made;
    })).classList.add("legend");
  }

  reset() {
    this.whole = false;
    this.all?.setAttribute("aria-pressed", "false");
    this.redraw();
  }

  // Arrows read values, + and - zoom, 0 resets.
  onKey(event) {
    const axis = this.box._fullLayout?.xaxis;
    if (!axis || event.ctrlKey || event.metaKey || event.altKey || !Array.isArray(axis.range)) return;
    const [low, high] = axis.range, step = { ArrowLeft: -0.02, ArrowRight: 0.02 }[event.key];
    if (step) {
      this.cursor = Math.min(1, Math.max(0, this.cursor + step));
      const at = low + this.cursor * (high - low);
      Plotly.Fx.hover(this.box, { xval: axis.type === "log" ? 10 ** at : at, yval: 0 }, "xy");
    } else if (event.key === "+" || event.key === "=" || event.key === "-") {
      const at = low + this.cursor * (high - low), factor = event.key === "-" ? 2 : 0.5;
      Plotly.relayout(this.box, { "xaxis.range": [at + (low - at) * factor, at + (high - at) * factor] });
    } else if (event.key === "0") this.reset();
    else if (event.key === "Escape") Plotly.Fx.unhover(this.box);
    else return;
    event.preventDefault();
  }
}

// ---- drawing ----
const drawn = new Map();
let contentsOf = null;
const draw = box => {
  if (contentsOf && !drawn.has(box) && box.clientWidth) drawn.set(box, new Chart(box, contentsOf[box.dataset.chart]));
};
const boxes = [...document.querySelectorAll("[data-chart]")];
const unpack = async id => {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), letter => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
};
const start = async () => {
  if (!boxes.length) return;
  if (!("DecompressionStream" in window)) {
    document.getElementById("without-charts").hidden = false;
    return;
  }
  const [library, charts] = await Promise.all([unpack("library"), unpack("charts")]);
  const script = document.createElement("script");
  script.textContent = library;
  document.head.append(script);
  contentsOf = JSON.parse(charts);
  for (const box of boxes) {
    draw(box);
    await new Promise(next => setTimeout(next));
  }
  root.dataset.charts = "drawn";
};
for (const details of document.querySelectorAll("section > details")) {
  details.addEventListener("toggle", () => { if (details.open) details.querySelectorAll("[data-chart]").forEach(draw); });
}
const redrawAll = () => { for (const chart of drawn.values()) chart.draw(); };
dark.addEventListener("change", redrawAll);
narrow.addEventListener("change", redrawAll);

// ---- paper ----
const opened = [];
const toPaper = () => {
  if (root.classList.contains("paper")) return;
  root.classList.add("paper");
  for (const details of document.querySelectorAll("section > details:not([open])")) {
    details.open = true;
    opened.push(details);
  }
  boxes.forEach(draw);
  redrawAll();
};
const fromPaper = () => {
  root.classList.remove("paper");
  for (const details of opened.splice(0)) details.open = false;
  redrawAll();
};
addEventListener("beforeprint", toPaper);
addEventListener("afterprint", fromPaper);
paper.addEventListener("change", () => paper.matches ? toPaper() : fromPaper());
start();
