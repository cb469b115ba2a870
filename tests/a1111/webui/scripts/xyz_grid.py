"""X/Y/Z plot: extensions append to `axis_options`."""

from modules import processing, scripts


class AxisOption:
    def __init__(self, label, type, apply, format_value=str, confirm=None, cost=0.0, choices=None):
        self.label, self.type, self.apply = label, type, apply
        self.format_value, self.confirm, self.cost, self.choices = format_value, confirm, cost, choices


def _set_seed(p, value, values):
    p.seed = int(value)


axis_options = [AxisOption("Seed", int, _set_seed)]


class XYZ(scripts.Script):
    def title(self):
        return "X/Y/Z plot"

    def run(self, p, label, values):
        """One picture for each value of an axis."""
        option = next(o for o in axis_options if o.label == label)
        results = []
        for value in values:
            cell = processing.clone(p)
            option.apply(cell, option.type(value), values)
            results.append(processing.process_images(cell))
        return results
