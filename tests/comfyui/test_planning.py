"""Attributes in words and the session's statistics in the real ComfyUI."""

from __future__ import annotations

from collections import Counter

import numpy as np

from fair_adapter.shared.attributes import TargetDistribution
from fair_adapter.shared.session import evened
from fair_adapter.tests.comfyui.client import Client, Run
from fair_adapter.tests.comfyui.lab import Server
from fair_adapter.tests.comfyui.prompts import Prompt, base, faces, node

EQUAL = "gender=50/50;race=equal"
PORTRAIT = {"place": "at the marker", "marker": "[person]", "phrases": "portrait"}


def worded(
    text: str, pictures: int, target: str = EQUAL, steps: int = 2, seed: int = 0, **options: object
) -> Prompt:
    """Node 21 is the target, 30 draws the prompts; the sampler draws one picture for each."""
    prompt = base(steps=steps)
    given = {"place": "before", "marker": "[person]", "first_picture": 0, "phrases": "english", **options}
    prompt["21"] = node("TargetDistribution", preset="sliders or text", text=target)
    prompt["30"] = node(
        "DrawAttributes", prompt=text, target=["21", 0], pictures=pictures, seed=seed, **given
    )
    prompt["31"] = node("PreviewAny", source=["30", 3])
    prompt["3"]["inputs"]["text"] = ["30", 0]
    prompt["6"]["inputs"]["seed"] = ["30", 2]
    return prompt


def said(run: Run, key: str = "30") -> list[str]:
    (told,) = run.output(key)["fair_words"]
    return told["phrases"]


def test_every_picture_gets_its_own_prompt_and_noise(client: Client) -> None:
    prompt = worded("a photo of the face of a [person] nurse, a person", 6, steps=6, seed=40, **PORTRAIT)
    run = client.run(faces(prompt))
    assert run.ok, run.events[-1]
    races, genders = zip(*(phrase.rsplit(" ", 1) for phrase in said(run)))
    assert Counter(genders) == {"female": 3, "male": 3}
    assert races.count("black") == races.count("asian") == 2
    (table,) = run.output("8")["fair_shares"]
    found = {row["label"]: row["share"] for name in ("gender", "race") for row in table[name]}
    assert len(run.output("8")["fair_faces"]) == 6
    assert abs(found["female"] - 0.5) < 0.2 and min(found[race] for race in ("wmelh", "black", "asian")) > 0.1
    pictures = client.pictures(run, "9")
    assert len({picture.tobytes() for picture in pictures}) == 6


def test_the_same_inputs_draw_the_same_pictures_and_stock_nodes_do_it_alone(client: Client) -> None:
    run = client.run(worded("a nurse", 2, seed=7))
    assert run.ok, run.events[-1]
    assert client.run(worded("a nurse", 2, seed=7)).executed == set()
    for number, phrase in enumerate(said(run)):
        alone = base(f"{phrase}, a nurse", seed=7 + number, steps=2)
        assert np.array_equal(client.pictures(run, "9")[number], client.pictures(client.run(alone), "9")[0])


def test_a_prompt_keeps_what_it_names(client: Client) -> None:
    run = client.run(worded("a female nurse", 3))
    (told,) = run.output("30")["fair_words"]
    assert told["warnings"] == ["the prompt names gender (female): it stays, and no word is added"]
    assert all(phrase.startswith("a person, ") for phrase in told["phrases"])


def test_an_own_table_is_offered_and_read_again_when_it_changes(client: Client, server: Server) -> None:
    folder = server.base / "models" / "fair_adapters" / "phrases"
    folder.mkdir(exist_ok=True)
    table = folder / "german.csv"
    table.write_text("attribute,class,phrase\ngender,female,eine Frau\ngender,male,ein Mann\n", "utf-8")
    inputs = client.get("/object_info/FairAdapter_DrawAttributes")["FairAdapter_DrawAttributes"]["input"]
    assert "german" in str(inputs["required"]["phrases"])
    first = client.run(worded("Pflege", 2, "gender=50/50", phrases="german"))
    assert sorted(said(first)) == ["ein Mann", "eine Frau"]
    table.write_text("attribute,class,phrase\ngender,female,eine Dame\ngender,male,ein Mann\n", "utf-8")
    assert "eine Dame" in said(client.run(worded("Pflege", 2, "gender=50/50", phrases="german")))
    table.write_text("attribute,class,phrase\ngender\n", "utf-8")
    wrong = client.run(worded("Pflege", 2, "gender=50/50", phrases="german"))
    assert "german.csv, row 2: expected 3 to 5 cells, found 1" in wrong.error["exception_message"]


def test_wrong_values_are_told_in_a_line(client: Client) -> None:
    for change, message in (
        ({"phrases": "klingon"}, "expected one of english"),
        ({"place": "inside"}, "place: expected one of 'before'"),
    ):
        refused = client.run(worded("a nurse", 2, **change)).refused
        assert refused is not None and message in str(refused), change
    lost = client.run(worded("a nurse", 2, place="at the marker"))
    assert "expected the marker '[person]' in the prompt, found none" in lost.error["exception_message"]


# ---- the session


def with_session(prompt: Prompt, even_out: bool, pictures: int = 6, last: int = 4) -> Prompt:
    """Node 40 is the session, between the target and whatever draws by it."""
    inputs = {"target": ["21", 0], "last": last, "even_out": even_out, "pictures": pictures}
    prompt = {**faces(prompt), "40": node("Session", **inputs), "41": node("PreviewAny", source=["40", 1])}
    prompt["30"] = {**prompt["30"], "inputs": {**prompt["30"]["inputs"], "target": ["40", 0]}}
    return prompt


def test_a_session_counts_across_prompts_and_evens_out(client: Client) -> None:
    client.post("/fair_adapter/session/reset", {})
    men = worded("a photo of the face of a [person] cook", 4, "gender=male:100", steps=6, seed=60, **PORTRAIT)
    assert client.run(faces(men)).ok
    told = client.get("/fair_adapter/session", last="4", target="gender=50/50", pictures="6")
    counts = {row["label"]: row["count"] for row in told["shares"]["gender"]}
    assert told["pictures"] == 4 and counts["male"] >= 3
    session = [({"gender": label}, number) for label, number in counts.items()]
    batch = evened(TargetDistribution.parse("gender=50/50"), session, 6)
    assert told["next"].startswith(batch.to_text().partition(" (")[0])
    text = "a photo of the face of a [person] doctor"
    plain = worded(text, 6, "gender=50/50", steps=6, seed=80, **PORTRAIT)
    off = client.run(with_session(plain, False))
    client.post("/fair_adapter/session/reset", {})  # another session now
    assert client.run(with_session(plain, False)).executed == set()  # off, nothing runs anew
    assert Counter(said(off)) == {"female": 3, "male": 3}
    assert off.output("40")["fair_session"][0]["next"] == "next 6: gender female 3, male 3"
    same = client.run(faces(plain))
    assert np.array_equal(client.pictures(off, "9"), client.pictures(same, "9"))


def test_evened_out_every_run_looks_at_the_session_anew(client: Client) -> None:
    client.post("/fair_adapter/session/reset", {})
    text = "a photo of the face of a [person] teacher"
    run = client.run(faces(worded(text, 4, "gender=female:100", steps=6, seed=100, **PORTRAIT)))
    assert run.ok, run.events[-1]
    even = with_session(
        worded(text, 4, "gender=50/50", steps=6, seed=120, **PORTRAIT), True, pictures=4, last=8
    )
    first = client.run(even)
    assert Counter(said(first))["male"] >= 3
    assert first.output("40")["fair_session"][0]["next"].startswith("next 4: gender female ")
    again = client.run(even)
    assert {"40", "30"} <= again.executed
    assert abs(Counter(said(again))["male"] - 2) <= 1  # the four women and the four men are seen now
    status, message = client.status("/fair_adapter/session", last="none")
    assert status == 400 and "last: expected a whole number from 1 to 4096" in message
