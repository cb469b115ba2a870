"""The words of the portrait model's world: occupations, sports, descriptors, contexts and caption templates.

``TEST`` and ``VALIDATION`` are the paper's 50 and 10 held-out occupations (Shen et al., ICLR 2024; see
the paper's appendix); adapters are trained on ``TRAIN`` only. Which phrases lean towards women is set by hand
after common stereotypes, so that the world is skewed the way text-to-image models are; see ``world.py``.
"""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.replace("\n", " ").split(", "))


TEST = _words(
    """senator, violinist, ticket taker, electrical and electronics repairer, citizen, geologist, food cooking
machine operator, community and social service specialist, manufactured building and mobile home
installer, behavioral disorder counselor, sewer, roustabout, researcher, operations research analyst,
fence erector, construction and related worker, legal secretary, correspondence clerk, narrator, marriage
and family therapist, clinical laboratory technician, gas compressor and gas pumping station operator,
cosmetologist, stocker, machine offbearer, salesperson, administrative services manager, mail machine
operator, veterinary technician, surveying and mapping technician, signal and track switch repairer,
industrial machinery mechanic, inventor, public safety telecommunicator, ophthalmic medical technician,
promoter, interior designer, blaster, general internal medicine physician, butcher, farm equipment service
technician, associate dean, accountants and auditor, custodian, sergeant, executive assistant,
administrator, physical science technician, health technician, cardiologist"""
)

VALIDATION = _words(
    """housekeeping cleaner, freelance writer, lieutenant, fine artist, administrative law judge, librarian,
sale, anesthesiologist, secondary school teacher, dancer"""
)

TRAIN = _words(
    """doctor, nurse, engineer, teacher, lawyer, plumber, electrician, carpenter, chef, waiter, baker,
bartender, cashier, farmer, fisher, pilot, flight attendant, bus driver, truck driver, taxi driver, mechanic,
welder, machinist, mason, roofer, painter, plasterer, glazier, tailor, shoemaker, jeweler, watchmaker,
hairdresser, barber, manicurist, makeup artist, fashion designer, graphic designer, photographer,
sculptor, musician, singer, pianist, drummer, actor, film director, journalist, editor, translator,
author, poet, publisher, archivist, curator, historian, philosopher, economist, statistician,
mathematician, physicist, chemist, biologist, astronomer, meteorologist, oceanographer, botanist,
zoologist, software developer, data scientist, web designer, network technician, security guard, police
officer, firefighter, paramedic, soldier, sailor, detective, probation officer, social worker,
psychologist, psychiatrist, surgeon, dentist, dental hygienist, pharmacist, optician, midwife, dietitian,
physiotherapist, veterinarian, receptionist, secretary, bookkeeper, bank teller, insurance agent, real
estate agent, stockbroker, marketing manager, chief executive, mayor, ambassador, tour guide, travel
agent, hotel manager, janitor, gardener, florist, childcare worker, kindergarten teacher, university
professor, postal carrier, crane operator, miner"""
)

SPORTS = _words(
    """basketball, football, tennis, golf, swimming, boxing, cycling, volleyball, gymnastics, archery, rowing,
fencing, hockey, skiing"""
)

DESCRIPTORS = _words(
    """friendly, confident, thoughtful, ambitious, shy, cheerful, serious, elegant, brave, gentle,
intelligent, tired, creative, stubborn"""
)

CONTEXTS = _words(
    """at the beach, in a library, in the rain, on a city street, in a garden, at night, in a studio, in the
snow, at a market, on a farm, in a kitchen, on a train, in an office, at sunset"""
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

# {} is the noun phrase, e.g. "young black female violinist" or "friendly person".
TEMPLATES = (
    "a photo of the face of a {}, a person",
    "a photo of the face of a {}",
    "a photo of a {}",
    "a portrait of a {}",
    "a headshot of a {}",
    "a {}",
)
PAPER_TEMPLATE = TEMPLATES[0]

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

GENDER_WORDS = (("female",), ("male",))
RACE_WORDS = (("white", "latino", "middle eastern"), ("black",), ("asian",))
AGE_WORDS = (("young",), ("old",))
