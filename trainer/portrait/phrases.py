"""The words of the portrait model's world: its names, which of them lean towards women, fillers.

``TEST`` and ``VALIDATION`` are the paper's 50 and 10 held-out occupations (Shen et al., ICLR 2024; see
the paper's appendix); adapters are trained on ``TRAIN`` only. Which phrases lean towards women is set by hand
after common stereotypes, so that the world is skewed the way text-to-image models are; see ``world.py``.
"""

from ...shared.attributes import AGE, GENDER, RACE
from ..configuration.prompts import names


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.replace("\n", " ").split(", "))


TEST, VALIDATION, TRAIN, SPORTS, DESCRIPTORS, CONTEXTS = (
    tuple(row.name for row in names(group))
    for group in ("test", "validation", "train", "sport", "descriptor", "context")
)

FEMALE_LEANING = frozenset(
    _words(
        """ticket taker, community and social service specialist, behavioral disorder counselor, sewer, legal
secretary, correspondence clerk, marriage and family therapist, cosmetologist, administrative services
manager, veterinary technician, ophthalmic medical technician, interior designer, executive assistant,
health technician, public safety telecommunicator, clinical laboratory technician, housekeeping cleaner,
librarian, secondary school teacher, dancer, nurse, teacher, cashier, flight attendant, tailor,
hairdresser, manicurist, makeup artist, fashion designer, singer, translator, archivist, curator,
botanist, web designer, social worker, psychologist, dental hygienist, pharmacist, midwife, dietitian,
physiotherapist, receptionist, secretary, bookkeeper, bank teller, travel agent, florist, childcare
worker, kindergarten teacher, pianist, real estate agent, biologist, editor, veterinarian, optician,
volleyball, gymnastics, swimming, skiing, tennis, friendly, shy, gentle, elegant, cheerful, in a garden,
in a kitchen, at a market, in a library, at the beach"""
    )
)

FILLERS = (
    "sharp",
    "detailed",
    "high quality",
    "studio",
    "8k",
    "photorealistic",
    "professional",
    "soft focus",
    "closeup",
)

GENDER_WORDS, RACE_WORDS, AGE_WORDS = (
    tuple(look.words for look in attribute.looks) for attribute in (GENDER, RACE, AGE)
)
