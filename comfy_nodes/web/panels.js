// Pieces of our panels. Everything that comes over the wire goes through textContent, never through innerHTML.

export const el = (tag, name, ...children) => {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
};

const percent = (value) => `${Math.round(100 * value)}%`;

/** A DOM widget of ours on a node; its height follows what is in it. */
export function panel(node, name) {
  const content = el("div", "fair-content");
  const root = el("div", "fair-panel", content);
  root.dataset.fair = name;
  const widget = node.addDOMWidget(name, "FAIR_PANEL", root, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => widget.fairHeight ?? 24,
  });
  widget.serialize = false; // keeps it out of widgets_values too
  widget.fairHeight = 24;
  const fit = () => {
    const height = content.offsetHeight + 6;
    if (height < 10 || Math.abs(height - widget.fairHeight) < 2) return;
    widget.fairHeight = height;
    const least = node.computeSize();
    if (node.size[1] < least[1]) node.setSize([Math.max(node.size[0], least[0]), least[1]]);
    node.graph?.setDirtyCanvas?.(true, true);
  };
  new ResizeObserver(fit).observe(content);
  return {
    widget,
    content,
    fill(...children) {
      content.replaceChildren(...children.filter(Boolean));
      fit();
    },
  };
}

export const line = (text, kind = "") => el("div", `fair-line ${kind}`, text);
export const warnings = (lines) => (lines ?? []).map((text) => line(`\u26a0 ${text}`, "fair-warning"));
export const button = (text, title, action) => {
  const element = el("button", "fair-button", text);
  element.type = "button";
  element.title = title;
  element.addEventListener("pointerdown", (event) => event.stopPropagation());
  element.addEventListener("click", (event) => {
    event.stopPropagation();
    action();
  });
  return element;
};

/** The bars of one face: height is the confidence, hatched is uncertain. */
function plate(bars) {
  const box = el("div", "fair-plate");
  for (const bar of bars) {
    const fill = el("i", bar.certain ? "fair-bar" : "fair-bar fair-unsure", bar.certain ? bar.label[0].toUpperCase() : "?");
    fill.style.height = percent(bar.confidence);
    fill.style.backgroundColor = bar.colour;
    const track = el("span", "fair-track", fill);
    track.title = `${bar.attribute}: ${bar.spelled} ${percent(bar.confidence)}${bar.certain ? "" : ", uncertain"}`;
    box.append(track);
  }
  return box;
}

/** A picture with its faces. `place` sets where it comes from: {url, x, y, columns, rows} of a sheet. */
export function tile(faces, [width, height], { url, x = 0, y = 0, columns = 1, rows = 1 }) {
  const picture = el("div", "fair-picture");
  picture.style.aspectRatio = `${width} / ${height}`;
  picture.style.backgroundImage = `url("${url.replace(/"/g, "%22")}")`;
  picture.style.backgroundSize = `${100 * columns}% ${100 * rows}%`;
  picture.style.backgroundPosition = `${columns > 1 ? (100 * x) / (columns - 1) : 0}% ${rows > 1 ? (100 * y) / (rows - 1) : 0}%`;
  if (!faces.length) picture.append(el("div", "fair-none", "no face"));
  for (const face of faces) {
    const [x0, y0, x1, y1] = face.box.map((v, i) => (100 * v) / (i % 2 ? height : width));
    const frame = el("div", "fair-frame");
    Object.assign(frame.style, { left: `${x0}%`, top: `${y0}%`, width: `${x1 - x0}%`, height: `${y1 - y0}%` });
    const bars = plate(face.bars);
    const room = 9 * face.bars.length;
    bars.style.width = `${room}%`;
    bars.style.left = `${x1 + room <= 100 ? x1 + 1 : x0 - room >= 0 ? x0 - room - 1 : 100 - room}%`;
    bars.style.bottom = `${Math.max(0, 100 - y1)}%`;
    picture.append(frame, bars);
  }
  return picture;
}

/** A grid of pictures, about as wide as high. */
export function grid(tiles, columns) {
  const box = el("div", "fair-grid", ...tiles);
  box.style.gridTemplateColumns = `repeat(${columns ?? Math.max(1, Math.ceil(Math.sqrt(tiles.length)))}, 1fr)`;
  return box;
}

/** The share of each class, its 95% interval and the target, grouped by attribute. */
export function shares(table) {
  const box = el("div", "fair-shares");
  for (const [attribute, rows] of Object.entries(table ?? {})) {
    box.append(el("div", "fair-attribute", attribute));
    for (const row of rows) {
      const fill = el("i", "fair-fill");
      fill.style.width = percent(row.share);
      fill.style.backgroundColor = row.colour;
      const interval = el("i", "fair-interval");
      interval.style.left = percent(row.low);
      interval.style.width = percent(row.high - row.low);
      const track = el("span", "fair-row-track", fill, interval);
      if (row.target !== null && row.target !== undefined) {
        const aim = el("i", "fair-aim");
        aim.style.left = percent(row.target);
        track.append(aim);
      }
      track.title = `${attribute} ${row.spelled}: ${percent(row.share)}, 95% interval ${percent(row.low)} to ${percent(row.high)}${row.target == null ? "" : `, target ${percent(row.target)}`}`;
      box.append(el("div", "fair-row", el("span", "fair-label", row.label), track, el("span", "fair-value", percent(row.share))));
    }
  }
  return box;
}

const ORDINALS = ["1st", "2nd", "3rd"];
/** What the bars of a table of shares mean: its attributes stand in the order of the bars. */
export const legend = (table, target = false) =>
  line(`${Object.keys(table ?? {}).map((name, place) => `${ORDINALS[place] ?? `${place + 1}th`} bar ${name}`).join(", ")}; height: confidence; hatched: uncertain; line: 95% interval${target ? "; mark: target" : ""}`, "fair-soft");

const STYLE = `
.fair-panel{overflow:hidden;width:100%;font:12px/1.35 Inter,system-ui,sans-serif;color:var(--fg-color,#ddd)}
.fair-content{padding:4px 8px 6px;box-sizing:border-box;display:flex;flex-direction:column;gap:5px}
.fair-line{overflow-wrap:anywhere}
.fair-title{font-weight:600}
.fair-soft{color:var(--descrip-text,#9aa0a8);font-size:11px}
.fair-messages{display:contents}
.fair-warning{color:#f0c34e}
.fair-error{color:#ff8f80}
.fair-said{max-height:220px;overflow-y:auto}
.fair-facts{display:grid;grid-template-columns:72px minmax(0,1fr);gap:1px 8px;overflow-wrap:anywhere}
.fair-facts>:nth-child(odd){color:var(--descrip-text,#9aa0a8)}
.fair-buttons{display:flex;gap:5px;flex-wrap:wrap}
.fair-button{font:inherit;font-size:11px;color:inherit;background:var(--comfy-input-bg,#2a2b2f);border:1px solid var(--border-color,#50525a);border-radius:5px;padding:1px 8px;cursor:pointer}
.fair-button:hover{border-color:var(--fg-color,#ddd)}
.fair-grid{display:grid;gap:4px}
.fair-dim .fair-frame,.fair-dim .fair-plate,.fair-dim .fair-none,.fair-dim .fair-shares{opacity:.4}
.fair-picture{position:relative;background-repeat:no-repeat;overflow:hidden;border-radius:3px;container-type:size}
.fair-frame{position:absolute;border:1.5px solid #fff;box-shadow:0 0 0 1px rgba(28,30,34,.6);box-sizing:border-box}
.fair-plate{position:absolute;height:34%;display:flex;gap:4%;padding:1.5% 1%;box-sizing:border-box;background:rgba(28,30,34,.82)}
.fair-track{flex:1;position:relative;background:rgba(255,255,255,.22)}
.fair-bar{position:absolute;left:0;right:0;bottom:0;overflow:hidden;font:700 6.5cqmin/1 Inter,system-ui,sans-serif;color:#1c1e22;display:flex;align-items:flex-end;justify-content:center;padding-bottom:4%}
.fair-unsure{background-image:repeating-linear-gradient(135deg,rgba(28,30,34,.75) 0 3px,transparent 3px 6px);color:#fff;text-shadow:0 0 2px #000,0 0 2px #000}
.fair-none{position:absolute;left:0;right:0;bottom:0;text-align:center;color:#fff;background:rgba(28,30,34,.82)}
.fair-shares{display:flex;flex-direction:column;gap:2px}
.fair-attribute{color:var(--descrip-text,#9aa0a8);font-size:11px;margin-top:2px}
.fair-row{display:flex;align-items:center;gap:6px}
.fair-label{flex:0 0 62px;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.fair-joint .fair-label{flex-basis:96px}
.fair-value{flex:0 0 34px;text-align:right;font-variant-numeric:tabular-nums}
.fair-row-track{flex:1;position:relative;height:14px;background:rgba(255,255,255,.1);border-radius:2px}
.fair-fill{position:absolute;left:0;top:0;bottom:0;border-radius:2px}
.fair-interval{position:absolute;top:6px;height:2px;background:#fff;box-shadow:0 0 0 1px rgba(28,30,34,.65)}
.fair-aim{position:absolute;top:-2px;bottom:-2px;width:3px;margin-left:-1.5px;background:#fff;box-shadow:0 0 0 1px rgba(28,30,34,.9)}
.fair-group{display:flex;flex-direction:column;gap:1px}
.fair-head{display:flex;align-items:center;gap:5px;justify-content:space-between;color:var(--descrip-text,#9aa0a8);font-size:11px}
.fair-slider{flex:1;min-width:60px;height:16px;margin:0;appearance:none;background:none;cursor:pointer}
.fair-slider::-webkit-slider-runnable-track{height:6px;border-radius:3px;background:linear-gradient(90deg,var(--fair-colour,#8ab) var(--fair-share,50%),rgba(255,255,255,.16) 0)}
.fair-slider::-webkit-slider-thumb{appearance:none;width:14px;height:14px;margin-top:-4px;border-radius:50%;background:#fff;box-shadow:0 0 0 1px rgba(28,30,34,.7)}
.fair-slider::-moz-range-track{height:6px;border-radius:3px;background:rgba(255,255,255,.16)}
.fair-slider::-moz-range-progress{height:6px;border-radius:3px;background:var(--fair-colour,#8ab)}
.fair-slider::-moz-range-thumb{width:14px;height:14px;border:0;border-radius:50%;background:#fff}
.fair-slider:focus-visible{outline:1px solid var(--fg-color,#ddd);border-radius:4px}
.fair-number{flex:0 0 52px;width:52px;font:inherit;text-align:right;color:inherit;background:var(--comfy-input-bg,#2a2b2f);border:1px solid transparent;border-radius:4px;padding:0 2px}
.fair-number::-webkit-inner-spin-button{display:none}
.fair-number:focus{border-color:var(--fg-color,#ddd);outline:none}
`;

export function addStyle() {
  if (document.getElementById("fair-adapter-style")) return;
  const style = el("style", "");
  style.id = "fair-adapter-style";
  style.textContent = STYLE;
  document.head.append(style);
}
