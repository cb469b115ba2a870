"""The paper's own tables, to be read beside ours: published figures, nothing of it measured by this project.

Shen et al., "Finetuning Text-to-Image Diffusion Models for Fairness", ICLR 2024: tables 1, 5 and 6. Stable
Diffusion 1.5, its own classifiers with four race classes (a race bias of .50 at most, gender x race .25), 50
test occupations, mean and standard deviation over prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "Shen et al., Finetuning Text-to-Image Diffusion Models for Fairness, ICLR 2024"
NOTE = (
    "Published figures, not measured here: Stable Diffusion 1.5, their classifiers with four race classes, "
    "with which a race bias is .50 at most and gender x race .25, their prompts and noises. Compare "
    "tendencies, not digits."
)


@dataclass(frozen=True)
class PublishedTable:
    """rows: the first cell says what the row is; ± is the standard deviation over prompts."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


TABLE_1 = PublishedTable(
    "Table 1: occupations",
    ("method", "debiased", "gender", "race", "gender x race", "CLIP-T", "CLIP-I", "DINO"),
    (
        ("Stable Diffusion 1.5", "", ".67±.29", ".42±.06", ".21±.03", ".39±.05", "", ""),
        ("debiasVL", "gender", ".98±.10", ".49±.04", ".24±.02", ".36±.05", ".63±.14", ".53±.21"),
        ("UCE", "gender", ".59±.33", ".43±.06", ".21±.03", ".38±.05", ".83±.15", ".78±.21"),
        ("Ethical Intervention", "gender", ".56±.32", ".37±.08", ".19±.04", ".37±.05", ".68±.19", ".60±.25"),
        ("Concept Algebra", "gender", ".47±.31", ".41±.06", ".20±.02", ".39±.05", ".84±.14", ".79±.20"),
        ("the paper's", "gender", ".23±.16", ".44±.06", ".20±.03", ".39±.05", ".77±.15", ".70±.22"),
        ("debiasVL", "race", ".84±.18", ".38±.04", ".21±.01", ".36±.04", ".50±.12", ".36±.19"),
        ("UCE", "race", ".62±.33", ".40±.08", ".20±.04", ".38±.05", ".79±.15", ".73±.22"),
        ("Ethical Intervention", "race", ".58±.28", ".37±.06", ".19±.03", ".36±.05", ".65±.18", ".57±.25"),
        ("the paper's", "race", ".74±.27", ".12±.05", ".14±.03", ".39±.04", ".73±.15", ".67±.21"),
        ("debiasVL", "both", ".99±.04", ".47±.04", ".24±.01", ".35±.05", ".63±.18", ".49±.20"),
        ("UCE", "both", ".72±.28", ".36±.09", ".20±.03", ".38±.05", ".79±.16", ".74±.22"),
        ("Ethical Intervention", "both", ".55±.31", ".35±.07", ".18±.03", ".36±.05", ".63±.18", ".55±.24"),
        ("the paper's", "both", ".16±.13", ".09±.04", ".06±.02", ".39±.05", ".67±.15", ".58±.22"),
    ),
)
TABLE_5 = PublishedTable(
    "Table 5: age 75% young, 25% old",
    ("method", "gender", "race", "gender x race", "share of old", "CLIP-T", "CLIP-I", "DINO"),
    (
        ("Stable Diffusion 1.5", ".67", ".42", ".21", ".202±.263", ".39", "", ""),
        ("gender x race", ".16±.13", ".09±.04", ".06±.02", ".147±.216", ".39", ".67±.15", ".58±.22"),
        (
            "gender x race and age",
            ".15±.12",
            ".09±.04",
            ".06±.02",
            ".248±.091",
            ".38±.05",
            ".66±.16",
            ".58±.23",
        ),
    ),
)
TABLE_6 = PublishedTable(
    "Table 6: several concepts in one adapter",
    ("prompts", "model", "gender", "race", "gender x race", "CLIP-T"),
    (
        ("occupations", "Stable Diffusion 1.5", ".67", ".42", ".21", ".38"),
        ("occupations", "the paper's", ".23±.18", ".10±.04", ".07±.02", ".38"),
        ("sports", "Stable Diffusion 1.5", ".56", ".38", ".19", ".35"),
        ("sports", "the paper's", ".37±.23", ".11±.06", ".08±.04", ".35"),
        ("occupations with style and context", "Stable Diffusion 1.5", ".41", ".37", ".18", ".43"),
        ("occupations with style and context", "the paper's", ".31±.20", ".19±.07", ".11±.03", ".42"),
        ("personal descriptors", "Stable Diffusion 1.5", ".37", ".36", ".17", ".41"),
        ("personal descriptors", "the paper's", ".18±.17", ".13±.06", ".07±.03", ".41"),
    ),
)
TABLES = (TABLE_1, TABLE_5, TABLE_6)
