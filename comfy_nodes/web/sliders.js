// The sliders of Target Distribution. They write the node's text, which is all that is saved and sent.

import { button, el, line, warnings } from "./panels.js";
import { join, linked, split, write } from "./linked.js";

const OWN = "sliders or text"; // the preset that is none

/** Sliders over `node`'s text; `ask(query)` fetches what a text means from the server. */
export class Sliders {
  constructor(node, panel, ask) {
    Object.assign(this, { node, panel, ask, state: null, seen: "", serial: 0, held: false, drawn: "", messages: el("div", "fair-messages") });
  }

  widget(name) {
    return this.node.widgets?.find((widget) => widget.name === name);
  }

  /** Name of the connected adapter, if it can be told from the graph. */
  adapter() {
    const slot = this.node.inputs?.findIndex((input) => input.name === "adapter") ?? -1;
    const origin = slot < 0 ? null : this.node.getInputNode?.(slot);
    if (origin?.comfyClass !== "FairAdapter_LoadAdapter") return "";
    return String(origin.widgets?.find((widget) => widget.name === "adapter")?.value ?? "");
  }

  /** Called now and then: asks the server when text, preset or adapter changed. */
  async refresh() {
    const query = { text: this.widget("text")?.value ?? "", preset: this.widget("preset")?.value ?? OWN, adapter: this.adapter() };
    const key = JSON.stringify(query);
    if (this.held || key === this.seen) return;
    this.seen = key;
    const serial = ++this.serial;
    const state = await this.ask(query);
    if (serial !== this.serial) return; // a later text is on its way
    if (this.held) return void (this.seen = ""); // a hand is on it: asked again when it lets go
    this.state = state;
    this.draw();
  }

  /** A run tells what the server can't: warnings for an adapter that the graph does not show. */
  ran({ text, warnings: told }) {
    if (!this.state || (this.state.text !== text && !this.state.error)) return; // changed since
    this.state = { ...this.state, error: "", warnings: told };
    this.draw();
  }

  draw() {
    const { groups = [], attributes = {}, error, warnings: told } = this.state ?? {};
    const present = groups.flatMap((group) => group.name.split("*"));
    const absent = Object.keys(attributes).filter((name) => !present.includes(name));
    this.messages.replaceChildren(...(error ? [line(error, "fair-error")] : []), ...warnings(told));
    const layout = JSON.stringify([groups.map(({ name, classes }) => [name, classes]), absent]);
    if (layout === this.drawn) return groups.forEach((group, place) => this.show(place, group.shares)); // the focus stays
    this.drawn = layout;
    const buttons = el("div", "fair-buttons");
    for (const name of absent) {
      buttons.append(button(`+ ${name}`, `Set shares of ${name} too`, () => this.change([...this.state.groups, this.equal(name)])));
    }
    if (groups.length > 1) {
      buttons.append(button("joint", "One slider for each combination of classes", () => this.change([join(this.state.groups)])));
    }
    this.panel.fill(
      ...groups.map((group, place) => this.group(group, place)),
      absent.length || groups.length > 1 ? buttons : null,
      this.messages,
    );
  }

  group(group, place) {
    const head = el("div", "fair-head", group.name.replaceAll("*", " \u00d7 "));
    const tools = el("span", "fair-buttons");
    tools.append(button("equal", "Every class the same", () => this.change(this.replaced(place, { ...group, shares: group.classes.map(() => 100 / group.classes.length) }))));
    if (group.name.includes("*")) {
      tools.append(button("apart", "Each attribute on its own", () => this.change(this.state.groups.flatMap((g, i) => (i === place ? split(g) : [g])))));
    } else if (this.state.groups.length > 1) {
      tools.append(button("\u00d7", `Leave ${group.name} as it comes`, () => this.change(this.state.groups.filter((_, i) => i !== place))));
    }
    head.append(tools);
    const rows = group.classes.map((cell, index) => this.row(group, place, cell, index));
    const box = el("div", group.name.includes("*") ? "fair-group fair-joint" : "fair-group", head, ...rows);
    box.dataset.group = group.name;
    return box;
  }

  /** A cell with what its classes' names stand for. */
  spelled(group, cell) {
    const names = group.name.split("*");
    return cell.split("*").map((label, i) => this.state.spelled?.[names[i]]?.[label] ?? label).join(" ");
  }

  row(group, place, cell, index) {
    const slider = el("input", "fair-slider");
    Object.assign(slider, { type: "range", min: 0, max: 100, step: 0.1, value: group.shares[index], title: `Share of ${this.spelled(group, cell)} in %` });
    slider.style.setProperty("--fair-colour", group.colours?.[index] ?? "");
    slider.style.setProperty("--fair-share", `${group.shares[index]}%`);
    const number = el("input", "fair-number");
    Object.assign(number, { type: "number", min: 0, max: 100, step: 0.1, value: rounded(group.shares[index]), title: slider.title });
    let before = [...group.shares]; // where the drag began: a class that was pushed to 0 comes back
    const begin = (event) => {
      event.stopPropagation();
      before = [...this.state.groups[place].shares];
    };
    for (const input of [slider, number]) {
      input.dataset.cell = cell;
      input.addEventListener("pointerdown", begin);
      input.addEventListener("keydown", begin);
      input.addEventListener("wheel", (event) => event.stopPropagation(), { passive: true });
    }
    const move = (value) => this.move(place, linked(before, index, value));
    for (const [input, start] of [[slider, "pointerdown"], [number, "input"]]) {
      input.addEventListener(start, () => (this.held = true));
      for (const end of ["change", "pointerup", "pointercancel", "blur"]) input.addEventListener(end, () => (this.held = false));
    }
    slider.addEventListener("input", () => move(Number(slider.value)));
    number.addEventListener("change", () => Number.isFinite(number.valueAsNumber) && move(number.valueAsNumber));
    return el("div", "fair-row", el("span", "fair-label", cell.replaceAll("*", " ")), slider, number);
  }

  move(place, shares) {
    this.state.groups[place].shares = shares;
    this.show(place, shares);
    this.store(write(this.state.groups));
  }

  /** The shares of a group in its inputs, which stay. */
  show(place, shares) {
    const box = this.panel.content.querySelectorAll(".fair-group")[place];
    box.querySelectorAll(".fair-slider").forEach((slider, i) => {
      slider.value = shares[i];
      slider.style.setProperty("--fair-share", `${shares[i]}%`);
    });
    box.querySelectorAll(".fair-number").forEach((number, i) => {
      number.value = rounded(shares[i]);
    });
  }

  replaced(place, group) {
    return this.state.groups.map((other, i) => (i === place ? group : other));
  }

  equal(name) {
    const classes = this.state.attributes[name];
    return { name, classes, shares: classes.map(() => 100 / classes.length), colours: [] };
  }

  change(groups) {
    this.store(write(groups));
    this.refresh();
  }

  /** The text is the node's value; a preset would overrule it. */
  store(text) {
    for (const [name, value] of [["preset", OWN], ["text", text]]) {
      const widget = this.widget(name);
      if (!widget || widget.value === value) continue;
      widget.value = value;
      widget.callback?.(value);
    }
    this.node.graph?.setDirtyCanvas?.(true, true);
  }
}

const rounded = (share) => Number(share.toFixed(1));
