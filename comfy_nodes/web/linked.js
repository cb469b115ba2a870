// The arithmetic of linked sliders, as in shared/presets.py: whole tenths of a percent, the sum is exactly 100.

const TENTHS = 1000;

/** Percentages after slider `index` was set to `value`: the others keep their proportions. */
export function linked(shares, index, value) {
  const moved = shares.length === 1 ? TENTHS : roundHalfEven(Math.min(Math.max(value, 0), 100) * 10);
  let others = shares.map((share, i) => (i === index ? 0 : Math.max(share, 0)));
  const total = others.reduce((sum, share) => sum + share, 0);
  if (!total) others = others.map((_, i) => (i === index ? 0 : 1));
  const weight = total || shares.length - 1;
  const rest = TENTHS - moved;
  const exact = others.map((share) => (weight ? (share / weight) * rest : 0));
  const units = exact.map((unit) => Math.floor(unit + 1e-9));
  const order = exact
    .map((unit, i) => [units[i] - unit, i])
    .filter(([, i]) => i !== index)
    .sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  let left = rest - units.reduce((sum, unit) => sum + unit, 0);
  for (const [, i] of order) if (left-- > 0) units[i] += 1;
  units[index] = moved;
  return units.map((unit) => unit / 10);
}

/** As Python rounds. */
function roundHalfEven(value) {
  const floor = Math.floor(value);
  const rest = value - floor;
  if (rest !== 0.5) return Math.round(value);
  return floor % 2 ? floor + 1 : floor;
}

/** A target text of groups [{name, classes, shares}]. */
export function write(groups) {
  return groups
    .map(({ name, classes, shares }) => {
      const cells = classes.map((cell, i) => [cell, shares[i]]);
      const kept = name.includes("*") ? cells.filter(([, share]) => share > 0) : cells;
      return `${name}=${kept.map(([cell, share]) => `${cell}:${short(share)}`).join(",")}`;
    })
    .join(";");
}

/** A share without superfluous zeros; thirds keep what they need to sum to 100. */
export function short(share) {
  return String(Number(share.toFixed(4)));
}

/** All groups as one joint group: every combination of classes, the shares multiplied. */
export function join(groups) {
  return groups.reduce((left, right) => ({
    name: `${left.name}*${right.name}`,
    classes: left.classes.flatMap((a) => right.classes.map((b) => `${a}*${b}`)),
    shares: left.shares.flatMap((a) => right.shares.map((b) => (a * b) / 100)),
    colours: left.colours.flatMap((colour) => right.classes.map(() => colour)),
  }));
}

/** A joint group as one group for each attribute, by its marginal shares. */
export function split(group) {
  return group.name.split("*").map((name, place) => {
    const sums = new Map();
    group.classes.forEach((cell, i) => {
      const part = cell.split("*")[place];
      sums.set(part, (sums.get(part) ?? 0) + group.shares[i]);
    });
    return { name, classes: [...sums.keys()], shares: [...sums.values()], colours: [] };
  });
}
