"""Measures that ask a learned model: the CLIP that judges, DINO, LPIPS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ip2p.config import EvaluationConfig, ScoringConfig, fingerprint
from ip2p.evaluation.cases import EditCase, Pixels
from ip2p.evaluation.measures import NUMBER, Row, as_images, fit_to
from ip2p.records import PairScores


@dataclass(frozen=True)
class ClipMeasure:
    """CLIP's four similarities (paper, section 4.2), by the judge, and that to the target: CLIP-I of MagicBrush."""

    scoring: ScoringConfig
    columns = dict.fromkeys(("clip_original", "clip_edited", "clip_direction", "clip_image", "clip_target"), NUMBER)

    @property
    def identity(self) -> str:
        """The judge's weights by name."""
        return fingerprint("clip", self.scoring.clip_model, self.scoring.clip_pretrained)

    def __call__(self, cases: Sequence[EditCase], before: Sequence[Pixels], after: Sequence[Pixels]) -> list[Row]:
        """The similarities to captions are None where a case has none."""
        from ip2p.scoring import load_pair_scorer

        scorer = load_pair_scorer(self.scoring)
        found = scorer.score([case.triplet for case in cases], as_images(before), as_images(after))
        rows = [_similarities(*each) for each in zip(cases, found, strict=True)]
        known = [number for number, case in enumerate(cases) if case.target_image is not None]
        targets = [image for case in cases if (image := case.target_image) is not None]
        made = as_images([after[number] for number in known])
        triplets = [cases[number].triplet for number in known]
        for number, scores in zip(known, scorer.score(triplets, as_images(targets), made), strict=True):
            rows[number]["clip_target"] = scores.image
        return rows


def _similarities(case: EditCase, scores: PairScores) -> Row:
    told, before_told = bool(case.edited_prompt), bool(case.original_prompt)
    return {
        "clip_original": scores.original if before_told else None,
        "clip_edited": scores.edited if told else None,
        "clip_direction": scores.direction if told and before_told else None,
        "clip_image": scores.image,
        "clip_target": None,
    }


@dataclass(frozen=True)
class DinoMeasure:
    """Similarity by DINO's first token, to the input and to the target, in the preparation of its authors.

    `facebook/dino-vits16` is what MagicBrush and those who rebuilt Emu Edit's protocol measure with.
    """

    model: str
    device: str
    batch_size: int
    columns = dict.fromkeys(("dino_input", "dino_target"), NUMBER)

    @property
    def identity(self) -> str:
        """The model's name."""
        return fingerprint("dino", self.model)

    def __call__(self, cases: Sequence[EditCase], before: Sequence[Pixels], after: Sequence[Pixels]) -> list[Row]:
        """None where there is no target."""
        made = self._embed(after)
        rows: list[Row] = [{"dino_input": value} for value in (self._embed(before) * made).sum(-1).tolist()]
        known = [number for number, case in enumerate(cases) if case.target_image is not None]
        targets = [image for case in cases if (image := case.target_image) is not None]
        alike = (self._embed(targets) * made[known]).sum(-1).tolist() if known else []
        found = dict(zip(known, alike, strict=True))
        return [row | {"dino_target": found.get(number)} for number, row in enumerate(rows)]

    def _embed(self, images: Sequence[Pixels]) -> Any:
        """(N, D), of length 1."""
        import torch

        from ip2p.models.loading import load_image_model

        loaded = load_image_model(self.model, device=self.device)
        prepare = dino_preparation(int(loaded.model.config.image_size))
        found = []
        with torch.inference_mode():
            for start in range(0, len(images), self.batch_size):
                pixels = torch.stack([prepare(image) for image in as_images(images[start : start + self.batch_size])])
                found.append(loaded.model(pixels.to(loaded.device)).last_hidden_state[:, 0].float().cpu())
        return torch.nn.functional.normalize(torch.cat(found), dim=-1)


def dino_preparation(size: int) -> Any:
    """Short side to 256 for a model of 224, its middle, ImageNet's mean and deviation."""
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.Resize(round(size * 256 / 224), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )


@dataclass(frozen=True)
class LpipsMeasure:
    """LPIPS (Zhang et al., 2018) to the input outside the mask, by its authors' package."""

    net: str
    device: str
    columns = {"lpips_kept": NUMBER}

    @property
    def identity(self) -> str:
        """The backbone's name."""
        return fingerprint("lpips", self.net)

    def __call__(self, cases: Sequence[EditCase], before: Sequence[Pixels], after: Sequence[Pixels]) -> list[Row]:
        """None where no mask is known, or nothing is outside of it."""
        return [{"lpips_kept": self._kept(*each)} for each in zip(cases, before, after, strict=True)]

    def _kept(self, case: EditCase, before: Pixels, after: Pixels) -> float | None:
        import torch

        if case.mask is None or case.mask.all():
            return None
        model, place = _load_lpips(self.net, self.device)
        pictures = torch.stack([torch.tensor(each) for each in (before, fit_to(after, before))])
        pixels = (pictures.permute(0, 3, 1, 2).float() / 127.5 - 1).to(place)
        with torch.inference_mode():
            found = model(pixels[:1], pixels[1:])[0, 0].cpu().numpy()
        return float(found[~case.mask].mean())


def lpips_measures(knobs: EvaluationConfig) -> list[LpipsMeasure]:
    """One, where it is asked for."""
    return [LpipsMeasure(knobs.lpips, knobs.device)] if knobs.lpips else []


def _load_lpips(net: str, device: str) -> tuple[Any, str]:
    from ip2p.models.loading import load_once, resolve_device

    place = resolve_device(device)

    def load() -> Any:
        try:
            import lpips
        except ImportError as error:
            raise ValueError("evaluation.lpips needs lpips. Install it with: pip install 'ip2p[lpips]'") from error
        return lpips.LPIPS(net=net, spatial=True, verbose=False).eval().requires_grad_(False).to(place)

    return load_once(("lpips", net, place), load), place


def judge_of(knobs: EvaluationConfig, scoring: ScoringConfig) -> ScoringConfig:
    """The CLIP that judges: the evaluation's own, or the filter's where it names none."""
    if knobs.judge_clip_model is None:
        return ScoringConfig(
            clip_model=scoring.clip_model, clip_pretrained=scoring.clip_pretrained, device=knobs.device
        )
    return ScoringConfig(
        clip_model=knobs.judge_clip_model, clip_pretrained=knobs.judge_clip_pretrained, device=knobs.device
    )


def describe_judge(knobs: EvaluationConfig, scoring: ScoringConfig) -> Row:
    """What the report says of the judge."""
    judge = judge_of(knobs, scoring)
    same = (judge.clip_model, judge.clip_pretrained) == (scoring.clip_model, scoring.clip_pretrained)
    return {"model": _name(judge), "filter": _name(scoring), "same_as_filter": same}


def _name(scoring: ScoringConfig) -> str:
    name = scoring.clip_model.rstrip("/").rsplit("/", 1)[-1]
    return f"{name} ({scoring.clip_pretrained})" if scoring.clip_pretrained else name
