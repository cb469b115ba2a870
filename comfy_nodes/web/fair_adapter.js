// Fair Adapter in ComfyUI's front end: panels on our own nodes, in the canvas and in Nodes 2.0. No other node and
// nothing global is touched.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { addStyle, button, el, grid, legend, line, panel, shares, tile, warnings } from "./panels.js";
import { Sliders } from "./sliders.js";

const WATCH = 400; // ms between two looks at the values of our nodes
const nodes = new Set(); // our nodes that are on a canvas: {node, panel, watch?}
let read = 0; // runs of Face Attributes, after which a session has more pictures

async function ask(path, query) {
  try {
    const response = await api.fetchApi(`/fair_adapter/${path}?${new URLSearchParams(query)}`);
    return await response.json();
  } catch (error) {
    return { error: `the server does not answer (${error.message})` };
  }
}

const view = (file) => api.apiURL(`/view?${new URLSearchParams({ filename: file.filename, subfolder: file.subfolder ?? "", type: file.type })}`);

function onExecuted(node, action) {
  const inner = node.onExecuted;
  node.onExecuted = function (message) {
    inner?.apply(this, arguments);
    action(message ?? {});
  };
}

// ---- one function for each node: fills its panel, returns what is to be called now and then

function loadAdapter(node, box) {
  let seen = null;
  const show = (told) => {
    if (told.error) return box.fill(line(told.error, "fair-error"));
    const facts = el("div", "fair-facts", ...told.facts.flatMap(([key, value]) => [el("span", "", key), el("span", "", value)]));
    box.fill(line(told.title, "fair-title"), told.description ? line(told.description) : null, facts, ...told.evaluation.map((text) => line(text)), ...warnings(told.warnings));
  };
  onExecuted(node, ({ fair_adapter: told = [] }) => told.length && show(told.at(-1))); // the file may have been replaced
  return async () => {
    const name = node.widgets?.find((widget) => widget.name === "adapter")?.value;
    if (name === seen) return;
    seen = name;
    if (!name) return box.fill(line("no adapter found: put one into models/fair_adapters and press R", "fair-soft"));
    const told = await ask("adapter", { name });
    if (name === seen) show(told);
  };
}

function target(node, box) {
  const sliders = new Sliders(node, box, (query) => ask("target", query));
  onExecuted(node, ({ fair_target: told = [] }) => told.length && sliders.ran(told.at(-1)));
  return () => sliders.refresh();
}

function byPrompt(node, box) {
  let seen = null;
  const spaced = (text) => text.replace(/[;,]/g, "$& "); // so that it breaks between shares
  const entry = (row) => [el("span", "", row.pattern), el("span", "", spaced(row.target) + (row.origin ? ` (${row.origin})` : ""))];
  const rows = (told) => el("div", "fair-facts", ...told.rows.flatMap(entry));
  const show = (told, chosen) => {
    const more = told.count > told.rows.length ? line(`and ${told.count - told.rows.length} more`, "fair-soft") : null;
    const head = chosen ? [line(chosen.told || "the default target", "fair-title"), line(spaced(chosen.text)), ...warnings(chosen.warnings)] : [];
    box.fill(...head, told.error ? line(told.error, "fair-error") : rows(told), more);
  };
  const look = async (chosen) => {
    const name = (seen = node.widgets?.find((widget) => widget.name === "table")?.value);
    const told = name ? await ask("table", { name }) : { rows: [], error: "no table found: put one into models/fair_adapters and press R" };
    if (name === seen) show({ rows: [], ...told }, chosen);
  };
  onExecuted(node, ({ fair_chosen: told = [] }) => told.length && look(told.at(-1)));
  return async () => node.widgets?.find((widget) => widget.name === "table")?.value !== seen && look();
}

function applied(node, box) {
  box.fill(line("tells after a run what it matched", "fair-soft"));
  onExecuted(node, ({ fair_applied: [told] = [] }) => told && box.fill(line(told.text), ...warnings(told.warnings)));
}

function exported(node, box) {
  box.fill(line("writes a LoRA and an embedding for every ComfyUI", "fair-soft"));
  onExecuted(node, ({ fair_exported: [told] = [] }) => told && box.fill(...told.lines.map((text) => line(text)), ...warnings(told.warnings)));
}

function liveBars(node, box) {
  box.fill(line("not sampling", "fair-soft"));
  return Object.assign(() => {}, {
    show(frame) {
      if (frame.error) return box.fill(line(frame.error, "fair-error"));
      const rows = Math.ceil(frame.pictures.length / frame.columns);
      const tiles = frame.pictures.map((faces, i) =>
        tile(faces, frame.size, { url: frame.sheet, x: i % frame.columns, y: Math.floor(i / frame.columns), columns: frame.columns, rows }),
      );
      const early = frame.sharp ? "too early to be sure" : "colours of the latent, too coarse to read: connect a small VAE or put TAESD into models/vae_approx";
      const batch = el("div", frame.reliable ? "" : "fair-dim", grid(tiles, frame.columns), shares(frame.shares));
      box.fill(line(`step ${frame.step} of ${frame.total}${frame.reliable ? "" : `: ${early}`}`), batch, legend(frame.shares, aimed(frame.shares)));
    },
  });
}

const aimed = (table) => Object.values(table ?? {}).some((rows) => rows.some((row) => row.target != null));

function faces(node, box) {
  box.fill(line("no pictures yet", "fair-soft"));
  onExecuted(node, ({ fair_faces: files = [], fair_shares: [table] = [], fair_note: [note] = [] }) => {
    if (!table) return;
    const tiles = files.map((file) => tile(file.faces, [file.width, file.height], { url: view(file) }));
    box.fill(grid(tiles), shares(table), line(note), legend(table, aimed(table)));
  });
}

function statistics(node, box) {
  const name = () => String(node.widgets?.find((widget) => widget.name === "collection")?.value ?? "");
  const get = (kind) => window.open(api.apiURL(`/fair_adapter/statistics.${kind}?${new URLSearchParams({ name: name() })}`), "_blank");
  const reset = async () => {
    await api.fetchApi("/fair_adapter/statistics/reset", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ name: name() }) });
    seen = null;
  };
  let seen = null;
  const show = (told) => {
    const tools = el("div", "fair-buttons", button("reset", "Forget this collection", reset), button("CSV", "Save the table", () => get("csv")), button("PNG", "Save the picture", () => get("png")));
    box.fill(line(`${told.name}: ${told.faces} faces in ${told.pictures} pictures`, "fair-title"), shares(told.shares), ...told.notes.map((text) => line(text)), ...(told.saved ?? []).map((file) => line(`saved ${file}`, "fair-soft")), tools);
  };
  onExecuted(node, ({ fair_statistics: told = [] }) => told.length && show(told.at(-1))); // of a list, after all of it
  return async () => {
    if (name() === seen) return;
    seen = name();
    const told = await ask("statistics", { name: seen });
    if (!told.pictures) box.fill(line(told.error ?? `${seen}: nothing counted yet`, "fair-soft"));
    else show(told);
  };
}

function words(node, box) {
  box.fill(line("tells after a run what each picture says", "fair-soft"));
  onExecuted(node, ({ fair_words: [told] = [] }) => {
    if (!told) return;
    const said = told.phrases.map((text, i) => line(`${i + 1}. ${text || "as the prompt is"}`));
    box.fill(el("div", "fair-said", ...said), ...warnings(told.warnings));
  });
}

function session(node, box) {
  const value = (name) => node.widgets?.find((widget) => widget.name === name)?.value;
  const reset = async () => {
    await api.fetchApi("/fair_adapter/session/reset", { method: "POST" });
    seen = null;
  };
  let seen = null;
  let aim = ""; // the target is known from a run: it may come from any node
  let next = "";
  const show = (told) => {
    const counted = told.pictures ? line(`the last ${told.pictures} pictures, ${told.faces} with a face`, "fair-title") : line("no picture was read yet: put Face Attributes behind your pictures", "fair-soft");
    const tools = el("div", "fair-buttons", button("reset", "Forget the pictures of this session", reset));
    box.fill(counted, shares(told.shares), ...(told.pictures ? told.notes : []).map((text) => line(text)), next ? line(next) : null, tools);
  };
  onExecuted(node, ({ fair_session: [told] = [] }) => {
    if (!told) return;
    [aim, next, seen] = [told.target, told.next, null];
  });
  return async () => {
    const now = `${value("last")} ${aim} ${next} ${read}`;
    if (now === seen) return;
    seen = now;
    const told = await ask("session", { last: value("last") ?? 100, target: aim });
    if (now !== seen) return;
    if (told.error) box.fill(line(told.error, "fair-error"));
    else show(told);
  };
}

const PANELS = {
  FairAdapter_LoadAdapter: loadAdapter,
  FairAdapter_TargetDistribution: target,
  FairAdapter_TargetByPrompt: byPrompt,
  FairAdapter_Apply: applied,
  FairAdapter_Export: exported,
  FairAdapter_LiveBars: liveBars,
  FairAdapter_FaceAttributes: faces,
  FairAdapter_Statistics: statistics,
  FairAdapter_DrawAttributes: words,
  FairAdapter_Session: session,
};

// ---- the extension

/** The node of an id as the server writes it: inside subgraphs that is "outer:inner". */
function find(id) {
  const found = [...nodes].filter((entry) => entry.watch?.show);
  return found.find(({ node }) => String(node.id) === id) ?? found.find(({ node }) => String(node.id) === id.split(":").pop());
}

app.registerExtension({
  name: "FairAdapter",
  init() {
    addStyle();
  },
  setup() {
    api.addEventListener("fair_adapter.live", ({ detail }) => find(String(detail.node))?.watch.show(detail));
    api.addEventListener("executed", ({ detail }) => (read += detail?.output?.fair_faces ? 1 : 0));
    setInterval(() => nodes.forEach((entry) => entry.watch?.()), WATCH);
  },
  nodeCreated(node) {
    // here and not later: older front ends never show a DOM widget in Nodes 2.0 that is added afterwards
    const make = PANELS[node.comfyClass];
    if (!make) return;
    const entry = { node, panel: panel(node, `fair_${make.name}`) };
    entry.watch = make(node, entry.panel);
    nodes.add(entry);
    const inner = node.onRemoved;
    node.onRemoved = function () {
      inner?.apply(this, arguments);
      nodes.delete(entry);
    };
    if (node.size[0] < 300) node.setSize([300, node.size[1]]);
  },
});
