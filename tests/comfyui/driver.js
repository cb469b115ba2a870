// What a test does in the page; injected by browser.py as `window.fair`.

window.fair = {
  node: (kind) => window.app.graph._nodes.find((node) => node.type === kind),

  widget: (kind, name) => window.fair.node(kind).widgets.find((widget) => widget.name === name),

  value: ([kind, name]) => window.fair.widget(kind, name).value,

  set([kind, name, value]) {
    const widget = window.fair.widget(kind, name);
    widget.value = value;
    widget.callback?.(value);
  },

  queue() {
    window.fair.ended = null;
    for (const kind of ["execution_success", "execution_error", "execution_interrupted"]) {
      window.app.api.addEventListener(kind, (event) => {
        window.fair.ended = [kind, event.detail?.exception_message ?? ""];
      });
    }
    window.app.queuePrompt(0, 1);
  },

  show([scale, x, y]) {
    const canvas = window.app.canvas;
    canvas.ds.scale = scale;
    canvas.ds.offset = [x, y];
    canvas.setDirty(true, true);
  },

  /** Position, size and title of every node, a note, and what seeds do after a run. */
  lay([places, [position, size, text], after]) {
    const graph = window.app.graph;
    for (const node of graph._nodes) {
      const [at, room, title] = places[String(node.id)];
      node.pos = [...at];
      if (title) node.title = title;
      node.setSize([room[0], Math.max(room[1], node.computeSize()[1])]);
      const seed = node.widgets?.find((widget) => widget.name === "control_after_generate");
      if (seed) seed.value = after;
    }
    const note = window.LiteGraph.createNode("MarkdownNote");
    graph.add(note);
    Object.assign(note, { pos: position, size, color: "#432", bgcolor: "#653" });
    note.widgets[0].value = text;
  },

  /** Left, top, right and bottom of the nodes with these ids, none meaning all, on the canvas. */
  bounds(ids) {
    const nodes = window.app.graph._nodes.filter((node) => !ids.length || ids.includes(String(node.id)));
    const boxes = nodes.map(({ pos, size }) => [pos[0], pos[1] - 30, pos[0] + size[0], pos[1] + size[1]]);
    return [0, 1, 2, 3].map((i) => boxes.reduce((a, b) => (i < 2 ? Math.min(a, b[i]) : Math.max(a, b[i])), boxes[0][i]));
  },

  /** Id, left, top, right and bottom of every node as it is drawn, its title included, on the canvas. */
  drawn() {
    const scale = window.app.canvas.ds.scale;
    return window.app.graph._nodes.map((node) => {
      const box = document.querySelector(`[data-node-id="${node.id}"]`)?.getBoundingClientRect();
      const height = box ? box.height / scale - 30 : node.size[1];
      return [node.id, node.pos[0], node.pos[1] - 30, node.pos[0] + node.size[0], node.pos[1] + height];
    });
  },

  /** Unfold what nodes of a kind keep folded. */
  unfold(kind) {
    for (const node of window.app.graph._nodes.filter((node) => node.type === kind)) {
      node.showAdvanced = true;
      if (!document.querySelector(`[data-node-id="${node.id}"]`)) {
        node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
      }
    }
    window.app.canvas.setDirty(true, true);
  },

  /** Node types that the front end does not know. */
  unknown: () =>
    window.app.graph._nodes
      .filter((node) => !node.constructor?.nodeData && !node.type.includes("Note"))
      .map((node) => node.type),

  slider: (cell) => document.querySelector(`.fair-slider[data-cell="${cell}"]`),

  /** The class whose slider or number has the focus. */
  focused: () => document.activeElement?.dataset?.cell ?? "",

  /** What a hand on a slider does: press, move, let go. */
  drag([cell, value]) {
    const slider = window.fair.slider(cell);
    const say = (event) => slider.dispatchEvent(event);
    say(new PointerEvent("pointerdown", { bubbles: true }));
    for (const place of [(Number(slider.value) + value) / 2, value]) {
      slider.value = place;
      say(new Event("input", { bubbles: true }));
    }
    say(new Event("change", { bubbles: true }));
  },

  press: (label) => [...document.querySelectorAll(".fair-button")].find((b) => b.textContent === label).click(),

  count: (selector) => document.querySelectorAll(selector).length,

  text: (selector) => document.querySelector(selector)?.textContent ?? "",

  height: (selector) => document.querySelector(selector)?.getBoundingClientRect().height ?? 0,

  async linked(rows) {
    const { linked } = await import("/extensions/fair-adapter/linked.js");
    return rows.map((row) => linked(...row));
  },
};
