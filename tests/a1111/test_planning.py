"""Draw attributes and evening out, without a host: fields, routes, what the statistics hold."""

from collections import Counter
from pathlib import Path

import pytest

from fair_adapter.a1111_extension import planning, records, routes, tab
from fair_adapter.a1111_extension.service import FairService
from fair_adapter.shared.attributes import TargetDistribution
from fair_adapter.shared.bars import Bar, FaceBars
from fair_adapter.shared.errors import FairAdapterError

EQUAL = "gender=50/50"


def face(**labels: str) -> FaceBars:
    bars = tuple(Bar(name, label, 0.9, (0, 0, 0)) for name, label in labels.items())
    return FaceBars((0.0, 0.0, 9.0, 9.0), bars)


@pytest.fixture
def service(tmp_path: Path) -> FairService:
    """Eight pictures of two prompts and two adapters, the last four of men alone, one without a face."""
    service = FairService([tmp_path / "adapters"], tmp_path / "data")
    labels = ["female", "female", "male", "female", "male", "male", None, "male"]
    service.records.add(
        [
            records.PictureRecord(
                f"prompt {i % 2}", [face(gender=label, race="asian")] if label else [], adapter=f"a{i // 4}"
            )
            for i, label in enumerate(labels)
        ]
    )
    return service


def test_the_last_pictures_are_the_newest_of_what_the_filter_shows(service: FairService) -> None:
    def women(**chosen: object) -> list[int]:
        found = service.records.statistics(records.RecordFilter(**chosen))  # type: ignore[arg-type]
        return [found.pictures, found.counts("gender")["female"]] if found.faces else [found.pictures, 0]

    assert women() == [8, 3] and women(last=5) == [5, 1] and women(last=4) == [4, 0]
    assert women(last=100) == [8, 3] and women(adapter="a0", last=2) == [2, 1]
    assert women(prompt="prompt 1", last=3) == [3, 1]  # pictures 3, 5 and 7
    seen = service.records.seen(records.RecordFilter(last=4))
    assert sorted(seen, key=str) == [({"gender": "male", "race": "asian"}, 3), ({}, 1)]
    assert len(service.records.to_csv(records.RecordFilter(last=3)).splitlines()) == 4
    assert service.records.reset(records.RecordFilter(last=4)) == 4 and service.records.count() == 4


def test_what_evens_the_last_pictures_out(service: FairService) -> None:
    target = TargetDistribution.parse(EQUAL)
    chosen = records.RecordFilter(last=4)
    batch = planning.next_batch(service, target, 5, chosen)
    assert batch.to_text() == (
        "next 5: gender female 4, male 1 (evens out 3 pictures; 1 without such a reading left out)"
    )
    told = routes.Api(service).statistics(target=EQUAL, last="4", pictures="5")
    assert (told["pictures"], told["next"]["target"]) == (4, "gender=female:80,male:20")
    assert "next" not in routes.Api(service).statistics(target=EQUAL)
    assert "of 50%" in tab.show_statistics(service, "", "all", "all", EQUAL, 4)
    with pytest.raises(FairAdapterError, match="target: empty"):
        routes.Api(service).statistics(pictures="5")


def test_prompts_of_the_tool_and_of_the_route_are_the_same(service: FairService) -> None:
    given = {"prompt": "a cook", "target": f"{EQUAL};age=75/25", "pictures": "8", "seed": "3"}
    found, line = planning.drawn(service, given)
    told = routes.Api(service).words(**given)
    assert told["prompts"] == found.prompts == planning.lines(found).split("\n") and line == ""
    assert Counter(row["gender"] for row in told["classes"]) == {"female": 4, "male": 4}
    assert told["phrases"][0] + ", a cook" == told["prompts"][0] and told["seeds"] == list(range(3, 11))
    two, _ = planning.drawn(service, {**given, "prompt": "a cook,\nin oil"})
    assert len(planning.lines(two).splitlines()) == 8
    random = [planning.drawn(service, {**given, "pictures": 60, "seed": -1})[0].prompts for _ in range(2)]
    assert random[0] != random[1]


def test_prompts_even_the_last_pictures_out(service: FairService) -> None:
    found, line = planning.drawn(service, {"target": EQUAL, "pictures": 5, "last": 4, "first": 7})
    assert Counter(picture.classes["gender"] for picture in found.pictures) == {"female": 4, "male": 1}
    assert line.startswith("next 5: gender female 4, male 1")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"target": ""}, "target: empty, expected for example"),
        ({"pictures": "none"}, "pictures: expected a whole number from 1 to 1000, found 'none'"),
        ({"pictures": 0}, "pictures: expected a whole number"),
        ({"pictures": None}, "pictures: expected a whole number"),
        ({"seed": 1.5}, "seed: expected a whole number"),
        ({"phrases": "/etc/passwd"}, "phrases '/etc/passwd': expected one of english"),
        ({"place": "somewhere"}, "place: expected one of before"),
        ({"place": "at the marker"}, "expected the marker"),
        ({"last": "-1"}, "last: expected a whole number from 0"),
    ],
)
def test_wrong_fields_are_one_line(service: FairService, given: dict, message: str) -> None:
    with pytest.raises(FairAdapterError, match=message):
        planning.drawn(service, {"target": EQUAL, "prompt": "a cook", **given})
