"""Generation parameters as text: prompt, negative prompt, then `Name: value` pairs.

Observed: a value with a comma, colon or line break is written as a JSON string, and read back from it.
"""

import json
import re

PAIR = re.compile(r'\s*([\w][\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def quote(text):
    text = str(text)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ",\n:") else text


def unquote(text):
    if len(text) > 1 and text[0] == text[-1] == '"':
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def write(prompt, negative, parameters):
    pairs = ", ".join(f"{k}: {quote(v)}" for k, v in parameters.items() if v is not None)
    return prompt + (f"\nNegative prompt: {negative}" if negative else "") + f"\n{pairs}"


def parse_generation_parameters(text, skip_fields=None):
    *head, last = text.strip().split("\n")
    if len(PAIR.findall(last)) < 3:
        head, last = [*head, last], ""
    prompt, negative, target = [], [], None
    for line in head:
        if line.startswith("Negative prompt:"):
            target = negative
            line = line[16:].strip()
        (prompt if target is None else negative).append(line)
    found = {"Prompt": "\n".join(prompt), "Negative prompt": "\n".join(negative)}
    for key, value in PAIR.findall(last):
        found[key.strip()] = unquote(value.strip())
    return found
