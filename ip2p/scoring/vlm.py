"""A vision-language judge's scores of a pair (`ip2p.picture_judge`), asked for once all other scores let it pass."""

from __future__ import annotations

from ip2p.scoring.score import Score


def _score(name: str, title: str, meaning: str, too_low: str, place: int) -> Score:
    return Score(
        name=name,
        column=name,
        title=title,
        meaning=meaning,
        unit="0 to 10",
        too_low=too_low,
        is_similarity=True,
        prepare=None,
        place=place,
    )


SCORES = (
    _score(
        "vlm_followed", "VLM: followed", "Instruction followed, by the judge", "not as instructed, says the judge", 200
    ),
    _score("vlm_kept", "VLM: kept", "Everything else kept, by the judge", "too little kept, says the judge", 201),
    _score(
        "vlm_quality", "VLM: quality", "Natural and clean, by the judge", "unnatural or unclean, says the judge", 202
    ),
)
