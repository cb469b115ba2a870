"""What a rendered person can wear and be lit by, and how often.

Odds of hair are a product of two factors: length goes by gender (3 to 1, not all or nothing) and texture by
race
with much overlap, so that neither tells the class alone. Clothes, glasses, expression, pose and light are
drawn without looking at gender, race or age. What is `held_out` appears in the test split only and fills it.
"""

from __future__ import annotations

from dataclasses import dataclass

RACES = ("black", "asian", "wmelh")  # the classes of the face chain; MakeHuman's african, asian, caucasian
GENDERS = ("female", "male")
AGES = {"young": (20.0, 40.0), "old": (40.0, 76.0)}  # years; half-open


@dataclass(frozen=True)
class Hair:
    """A hairstyle: `length` short or long, `texture` straight, curly, coily or none."""

    name: str
    length: str
    texture: str
    weight: float = 1.0
    held_out: bool = False


HAIR = (
    Hair("bald", "short", "none", 0.5),
    Hair("buzz", "short", "none", 0.9),
    Hair("crew", "short", "straight"),
    Hair("fringe", "short", "straight"),
    Hair("sidepart", "short", "straight", 1.2),
    Hair("short01", "short", "straight", 0.7),
    Hair("short04", "short", "straight", 0.7),
    Hair("curlytop", "short", "curly", 1.4),
    Hair("coils", "short", "coily", 1.6),
    Hair("bob", "long", "straight", 1.2),
    Hair("bangs", "long", "straight"),
    Hair("shoulder", "long", "straight"),
    Hair("long", "long", "straight"),
    Hair("tied", "long", "straight", 0.8),
    Hair("bun", "long", "straight", 0.8),
    Hair("wavy", "long", "curly", 1.2),
    Hair("curly", "long", "curly", 1.3),
    Hair("afro", "long", "coily", 1.4),
    Hair("locs", "long", "coily", 0.8),
    Hair("slick", "short", "straight", 1.0, True),
    Hair("quiff", "short", "straight", 1.0, True),
    Hair("twists", "short", "coily", 1.4, True),
    Hair("lob", "long", "straight", 1.0, True),
    Hair("ringlets", "long", "curly", 1.4, True),
    Hair("puff", "long", "coily", 1.4, True),
)
LENGTH = {"female": {"long": 0.74, "short": 0.26}, "male": {"long": 0.2, "short": 0.8}}
TEXTURE = {
    "black": {"straight": 0.24, "curly": 0.24, "coily": 0.40, "none": 0.12},
    "asian": {"straight": 0.68, "curly": 0.20, "coily": 0.02, "none": 0.10},
    "wmelh": {"straight": 0.54, "curly": 0.32, "coily": 0.03, "none": 0.11},
}

# Linear RGB
HAIR_COLOURS = {
    "black": (0.011, 0.009, 0.008),
    "darkbrown": (0.030, 0.019, 0.013),
    "brown": (0.075, 0.042, 0.024),
    "lightbrown": (0.15, 0.090, 0.050),
    "blond": (0.34, 0.23, 0.115),
    "auburn": (0.13, 0.040, 0.016),
    "grey": (0.26, 0.25, 0.24),
    "white": (0.52, 0.51, 0.49),
}
COLOUR_ODDS = {
    "black": {"black": 0.62, "darkbrown": 0.26, "brown": 0.06, "auburn": 0.03, "blond": 0.03},
    "asian": {"black": 0.58, "darkbrown": 0.26, "brown": 0.09, "auburn": 0.04, "blond": 0.03},
    "wmelh": {
        "black": 0.15,
        "darkbrown": 0.3,
        "brown": 0.25,
        "lightbrown": 0.13,
        "blond": 0.12,
        "auburn": 0.05,
    },
}
EYES = {
    "black": {"brown": 0.93, "brownlight": 0.07},
    "asian": {"brown": 0.93, "brownlight": 0.07},
    "wmelh": {"brown": 0.5, "brownlight": 0.2, "green": 0.1, "blue": 0.1, "bluegreen": 0.05, "grey": 0.05},
}
BEARDS = {
    "black": {"none": 0.42, "stubble": 0.2, "moustache": 0.09, "goatee": 0.12, "full": 0.17},
    "asian": {"none": 0.55, "stubble": 0.18, "moustache": 0.09, "goatee": 0.1, "full": 0.08},
    "wmelh": {"none": 0.42, "stubble": 0.22, "moustache": 0.08, "goatee": 0.1, "full": 0.18},
}
# Individual typology angle of the skin's reflectance, degrees: mean, spread, bounds
TONE = {
    "black": (-34.0, 25.0, -72.0, 22.0),
    "asian": (33.0, 14.0, 0.0, 56.0),
    "wmelh": (34.0, 20.0, -22.0, 58.0),
}
BROWS = {"female": (1, 2, 5, 7, 8, 10, 12), "male": (3, 4, 6, 9, 11, 12)}

OUTFITS = (  # MakeHuman's, fitted to the body that wears them
    "female_casualsuit01",
    "female_elegantsuit01",
    "male_casualsuit01",
    "male_casualsuit02",
    "male_casualsuit03",
    "male_casualsuit05",
    "male_casualsuit06",
    "male_elegantsuit01",
)
HELD_OUT_OUTFITS = ("male_worksuit01", "female_sportsuit01")
PATTERNS = {"plain": 0.62, "stripes": 0.16, "check": 0.12, "dots": 0.1}
LIGHTS = ("studio", "window", "front", "hard", "overcast", "lamp")
HELD_OUT_LIGHTS = ("sunset",)
EXPRESSIONS = {"neutral": 0.24, "slight smile": 0.34, "smile": 0.18, "open smile": 0.17, "raised brows": 0.07}
GLASSES, EARRINGS = 0.14, {"female": 0.35, "male": 0.1}

# Paired shape targets of the face: lower and upper end; "*" stands for both sides.
AXES = tuple(
    (f"{name}-{ends.split('/')[0]}", f"{name}-{ends.split('/')[1]}")
    for name, ends in (
        line.split()
        for line in """
head-scale-depth decr/incr
head-scale-vert decr/incr
head-scale-horiz decr/incr
head-fat decr/incr
head-back-scale-depth decr/incr
forehead-nubian decr/incr
forehead-scale-vert decr/incr
forehead-temple decr/incr
eyebrows-angle down/up
eyebrows-trans backward/forward
eyebrows-trans down/up
*-eye-corner1 down/up
*-eye-corner2 down/up
*-eye-height1 decr/incr
*-eye-height2 decr/incr
*-eye-height3 decr/incr
*-eye-trans down/up
*-eye-trans in/out
*-eye-eyefold concave/convex
*-eye-eyefold-angle down/up
*-eye-eyefold down/up
*-eye-bag-height decr/incr
nose-scale-vert decr/incr
nose-nostrils-angle down/up
nose-volume decr/incr
nose-septumangle decr/incr
nose-greek decr/incr
nose-compression compress/uncompress
nose-base down/up
nose-nostrils-width decr/incr
nose-flaring decr/incr
nose-scale-horiz decr/incr
nose-width1 decr/incr
nose-width2 decr/incr
nose-width3 decr/incr
nose-trans down/up
nose-point down/up
nose-curve concave/convex
nose-trans backward/forward
nose-point-width decr/incr
nose-scale-depth decr/incr
nose-hump decr/incr
mouth-upperlip-ext down/up
mouth-upperlip-height decr/incr
mouth-upperlip-middle down/up
mouth-upperlip-width decr/incr
mouth-upperlip-volume decr/incr
mouth-lowerlip-middle down/up
mouth-lowerlip-volume decr/incr
mouth-lowerlip-height decr/incr
mouth-lowerlip-ext down/up
mouth-lowerlip-width decr/incr
mouth-angles down/up
mouth-trans down/up
mouth-trans backward/forward
mouth-scale-depth decr/incr
mouth-scale-horiz decr/incr
mouth-scale-vert decr/incr
mouth-dimples in/out
mouth-cupidsbow decr/incr
mouth-cupidsbow-width decr/incr
mouth-philtrum-volume decr/incr
mouth-laugh-lines in/out
chin-prognathism decr/incr
chin-prominent decr/incr
chin-jaw-drop decr/incr
chin-width decr/incr
chin-bones decr/incr
chin-height decr/incr
chin-cleft decr/incr
*-cheek-trans down/up
*-cheek-inner decr/incr
*-cheek-bones decr/incr
*-cheek-volume decr/incr
*-ear-scale-vert decr/incr
*-ear-scale-depth decr/incr
*-ear-scale decr/incr
*-ear-flap decr/incr
*-ear-rot backward/forward
*-ear-trans down/up
*-ear-trans backward/forward
*-ear-lobe decr/incr
*-ear-wing decr/incr
measure-neck-circ decr/incr
measure-neck-height decr/incr
neck-double decr/incr
neck-back-scale-depth decr/incr
neck-scale-vert decr/incr
neck-scale-depth decr/incr
neck-scale-horiz decr/incr
""".strip().splitlines()
    )
)
SHAPES = ("oval", "round", "rectangular", "square", "triangular", "invertedtriangular", "diamond")
