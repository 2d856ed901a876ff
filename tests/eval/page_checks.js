"use strict";
// What tests ask of a page in a browser. Each gives a list of what is wrong, empty where nothing is.
window.checks = (() => {
  const isShown = element => element.checkVisibility({ opacityProperty: true, visibilityProperty: true });
  const describe = element => {
    const text = (element.textContent || "").trim().replace(/\s+/g, " ").slice(0, 40);
    const figure = element.closest("figure, section, header, nav");
    const name = element.getAttribute("class");
    return `<${element.tagName.toLowerCase()}${name ? ` class="${name}"` : ""}> "${text}" in ${figure ? figure.id || figure.tagName : "the page"}`;
  };

  // Elements that show a text of their own, with where it stands.
  const texts = () => {
    const found = new Map(), walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const element = walker.currentNode.parentElement;
      if (!walker.currentNode.data.trim() || ["SCRIPT", "STYLE", "NOSCRIPT"].includes(element.tagName) || !isShown(element)) continue;
      const range = document.createRange();
      range.selectNodeContents(walker.currentNode);
      const box = range.getBoundingClientRect();
      if (box.width < 1 || box.height < 1) continue;
      if (!found.has(element)) found.set(element, box);
    }
    return found;
  };

  // By how much an element is drawn larger than its style says.
  const scaleOf = element => {
    if (element instanceof SVGElement) {
      const { a, b, c, d } = element.getScreenCTM();
      return Math.sqrt(Math.abs(a * d - b * c));
    }
    let scale = 1;
    for (let outer = element; outer; outer = outer.parentElement) {
      const transform = getComputedStyle(outer).transform;
      if (transform !== "none") {
        const { a, b, c, d } = new DOMMatrix(transform);
        scale *= Math.sqrt(Math.abs(a * d - b * c));
      }
    }
    return scale;
  };

  const smallTexts = least => [...texts().keys()].flatMap(element => {
    const size = parseFloat(getComputedStyle(element).fontSize) * scaleOf(element);
    return size < least - 0.01 ? [`${size.toFixed(1)} px: ${describe(element)}`] : [];
  });

  const scrolls = element => ["auto", "scroll"].includes(getComputedStyle(element).overflowX);
  const clips = element => ["hidden", "clip"].includes(getComputedStyle(element).overflowX);
  const isDrawing = element => element instanceof SVGElement && element.tagName !== "svg" && element.tagName !== "text";

  // What reaches beyond the window, or beyond a box that shows no more of it. Boxes that scroll count as whole
  // where there is a screen to scroll on.
  const cut = mayScroll => {
    const wrong = [];
    const page = document.documentElement;
    if (page.scrollWidth > innerWidth) wrong.push(`the page is ${page.scrollWidth} px wide in a window of ${innerWidth}`);
    for (const element of document.body.querySelectorAll("*")) {
      if (isDrawing(element) || !isShown(element) || ["SCRIPT", "STYLE"].includes(element.tagName)) continue;
      const box = element.getBoundingClientRect();
      if (box.width <= 1 || box.height <= 1 || isOffStage(element)) continue;
      if (!mayScroll && scrolls(element) && element.scrollWidth > element.clientWidth + 1) {
        wrong.push(`${element.scrollWidth} px in a box of ${element.clientWidth}: ${describe(element)}`);
      }
      if (clips(element) && element.scrollWidth > element.clientWidth + 1 && !(element instanceof SVGElement) && element.textContent.trim()) {
        wrong.push(`${element.scrollWidth} px cut at ${element.clientWidth}: ${describe(element)}`);
      }
      let [low, high] = [0, innerWidth], isFree = false;
      for (let outer = element.parentElement; outer && !isFree; outer = outer.parentElement) {
        if (scrolls(outer)) isFree = mayScroll;
        else if (clips(outer) && !(outer instanceof SVGElement && outer.tagName !== "svg")) {
          const around = outer.getBoundingClientRect();
          [low, high] = [Math.max(low, around.left), Math.min(high, around.right)];
        }
      }
      if (!isFree && (box.left < low - 1 || box.right > high + 1)) {
        wrong.push(`from ${box.left.toFixed()} to ${box.right.toFixed()} px where ${low.toFixed()} to ${high.toFixed()} are seen: ${describe(element)}`);
      }
    }
    return wrong;
  };

  // What waits outside of the window until the keyboard reaches it, and what Plotly measures texts in.
  const isOffStage = element => {
    const link = element.closest("a.skip");
    if (link !== null) return document.activeElement !== link;
    return element.closest("#js-plotly-tester") !== null;
  };

  // ---- colours ----
  const brush = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const read = new Map();
  const rgba = colour => {
    if (!read.has(colour)) {
      brush.clearRect(0, 0, 1, 1);
      brush.fillStyle = colour;
      brush.fillRect(0, 0, 1, 1);
      const [r, g, b, alpha] = brush.getImageData(0, 0, 1, 1).data;
      read.set(colour, [r, g, b, alpha / 255]);
    }
    return read.get(colour);
  };
  const over = (top, below) => [0, 1, 2].map(i => top[3] * top[i] + (1 - top[3]) * below[i]);
  const luminance = colour => {
    const [r, g, b] = colour.map(value => value / 255).map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const background = element => {
    const layers = [];
    for (let outer = element; outer; outer = outer.parentElement) {
      layers.push(rgba(getComputedStyle(outer).backgroundColor));
      if (layers.at(-1)[3] === 1) break;
    }
    // the canvas that the scheme paints below everything
    const canvas = getComputedStyle(document.documentElement).colorScheme === "dark" || matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18] : [255, 255, 255];
    return layers.reverse().reduce((below, layer) => over(layer, below), canvas);
  };
  const opacityOf = element => {
    let opacity = 1;
    for (let outer = element; outer; outer = outer.parentElement) opacity *= parseFloat(getComputedStyle(outer).opacity);
    return opacity;
  };
  // A text in a chart may stand on a box of its own; on cells of a map its colour follows the cell's.
  const behind = element => {
    const below = background(element.closest("svg")?.parentElement || element);
    const plate = element.closest(".annotation-text-g, .hovertext")?.querySelector("rect, path");
    if (!plate) return below;
    const style = getComputedStyle(plate), [r, g, b, alpha] = rgba(style.fill === "none" ? "transparent" : style.fill);
    return over([r, g, b, alpha * parseFloat(style.fillOpacity)], below);
  };
  const contrast = (one, other) => {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const faintTexts = least => [...texts().keys()].flatMap(element => {
    if (element.closest(".heatmaplayer") || isOffStage(element)) return [];
    const style = getComputedStyle(element), isSvg = element instanceof SVGElement;
    const below = isSvg ? behind(element) : background(element);
    const [r, g, b, alpha] = rgba(isSvg ? style.fill : style.color);
    const visible = alpha * opacityOf(element) * (isSvg ? parseFloat(style.fillOpacity) : 1);
    const found = contrast(over([r, g, b, visible], below), below);
    return found < least - 0.005 ? [`${found.toFixed(2)} to 1: ${describe(element)}`] : [];
  });

  // ---- keyboard ----
  const reachable = () => [...document.querySelectorAll("button, summary, a[href], input, select, [tabindex]")]
    .filter(element => element.tabIndex >= 0 && isShown(element) && !element.disabled);
  const watchFocus = () => {
    window.focused = new Set();
    document.addEventListener("focusin", event => window.focused.add(event.target));
    return reachable().length;
  };
  const unreached = () => {
    const boxes = [...document.body.querySelectorAll("*")].filter(element =>
      isShown(element) && scrolls(element) && element.scrollWidth > element.clientWidth + 1);
    return [...new Set([...reachable(), ...boxes])].filter(element => !window.focused.has(element)).map(describe);
  };

  // How much a browser has to draw.
  const work = () => {
    const drawn = [...document.querySelectorAll("[data-chart]")].filter(box => box.calcdata);
    const points = drawn.flatMap(box => box.calcdata).map(trace => trace[0]?.z ? trace[0].z.length * trace[0].z[0].length : trace.length);
    return { charts: drawn.length, points: points.reduce((a, b) => a + b, 0), elements: document.querySelectorAll("*").length };
  };

  const closedFolds = () => [...document.querySelectorAll("section > details")].filter(details => !details.open).map(describe);

  return { smallTexts, cut, faintTexts, watchFocus, unreached, work, closedFolds };
})();
