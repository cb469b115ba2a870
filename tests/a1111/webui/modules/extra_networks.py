"""`<lora:name:weight>` in prompts; the registered network is asked at every activation."""

import re

TAG = re.compile(r"<(\w+):([^>]+)>")
registry = {}


class ExtraNetworkParams:
    def __init__(self, items=None):
        self.items = items or []

    def __eq__(self, other):
        return self.items == other.items


class ExtraNetwork:
    def __init__(self, name):
        self.name = name

    def activate(self, p, params_list):
        raise NotImplementedError

    def deactivate(self, p):
        raise NotImplementedError


def register_extra_network(network):
    registry[network.name] = network


def parse_prompt(prompt):
    found = {}
    for kind, items in TAG.findall(prompt):
        found.setdefault(kind, []).append(ExtraNetworkParams(items=items.split(":")))
    return TAG.sub("", prompt), found


def parse_prompts(prompts):
    """The first prompt's networks are those of the batch."""
    parsed = [parse_prompt(prompt) for prompt in prompts]
    return [text for text, _ in parsed], (parsed[0][1] if parsed else {})


def activate(p, extra_network_data):
    for name, network in registry.items():
        network.activate(p, extra_network_data.get(name, []))


def deactivate(p, extra_network_data):
    for network in registry.values():
        network.deactivate(p)
