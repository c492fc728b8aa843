"""Judges on trial: true pairs with right and wrong instructions, and the area under the curve by plain counting."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from ip2p.config import PipelineConfig, ScoringConfig, ServerConfig, VlmConfig
from ip2p.dataset.card import _judges as judges_on_the_card
from ip2p.dataset.inspection import _judges as judges_inspected
from ip2p.evaluation.trials import direction_scores, followed_scores, try_judges
from ip2p.picture_judge import PictureJudge
from ip2p.records import hash_to_unit
from ip2p.scoring.reliability import auroc, measure_reliability, read_reliability
from ip2p.scoring.scorer import load_scorer
from ip2p.shapes.domain import ShapesDomain
from ip2p.shapes.language import read_edit

ERRORS, SILENCE = 0.25, 0.1
"""Shares of questions that the judge answers the wrong way round, and that it answers without a score."""


def knows(question: str, right: set[str]) -> float | None:
    """The judge's rule: high for a right instruction, low for a wrong one, with known errors; None if it is silent."""
    draw = hash_to_unit("trial", question)
    if draw < SILENCE:
        return None
    is_right = (question in right) != (draw < SILENCE + ERRORS)
    return round((6 if is_right else 1) + 3 * hash_to_unit("how much", question))


class Judge(ThreadingHTTPServer):
    """Answers by `knows`."""

    daemon_threads = True

    def __init__(self, right: set[str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.right = right

    @property
    def config(self) -> VlmConfig:
        url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        return VlmConfig(model="judge", server=ServerConfig(base_url=url, first_delay=0.01))


class _Handler(BaseHTTPRequestHandler):
    server: Judge

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        question = body["messages"][0]["content"][-1]["text"]
        followed = knows(question.split('"')[1], self.server.right)
        scores = {"followed": followed, "kept": 5} if followed is not None else {}
        text = json.dumps(scores | {"natural": 5, "clean": 5})
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        content = json.dumps(
            {"id": "x", "object": "chat.completion", "created": 0, "model": "judge", "choices": [choice]}
        ).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


TRIALS = ShapesDomain().draw_trials(56, 3)


@pytest.fixture
def judge() -> Iterator[Judge]:
    with Judge({trial.right.edit_prompt for trial in TRIALS}) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()


def test_the_area_is_the_share_of_couples_in_the_right_order() -> None:
    rng = np.random.default_rng(0)
    right, wrong = (rng.integers(low, low + 6, num).astype(np.float64) for low, num in ((1, 40), (0, 30)))
    couples = [(one > other) + 0.5 * (one == other) for one in right for other in wrong]
    labels = np.r_[np.ones(40), np.zeros(30)]
    assert auroc(right, wrong) == pytest.approx(np.mean(couples))
    assert auroc(right, wrong) == pytest.approx(roc_auc_score(labels, np.r_[right, wrong]))


def test_trials_are_true_pairs_with_a_right_and_a_wrong_instruction_of_one_kind() -> None:
    for trial in TRIALS:
        assert trial.right.edit_type == trial.wrong.edit_type
        assert trial.right.original_prompt == trial.wrong.original_prompt
        assert trial.right.edited_prompt != trial.wrong.edited_prompt
        for triplet in (trial.right, trial.wrong):
            assert read_edit(triplet.original_prompt, triplet.edit_prompt, triplet.edited_prompt) is not None
        assert (trial.original_image != trial.edited_image).any()
    assert {trial.right.edit_type for trial in TRIALS} == set(ShapesDomain().edit_types())


def test_the_reliability_of_a_judge_with_known_errors_is_the_plain_one(judge: Judge, tmp_path: Path) -> None:
    right, wrong = followed_scores(PictureJudge(judge.config, tmp_path / "a.jsonl"), TRIALS)
    assert right == [knows(trial.right.edit_prompt, judge.right) for trial in TRIALS]
    assert wrong == [knows(trial.wrong.edit_prompt, judge.right) for trial in TRIALS]
    found = measure_reliability(right, wrong)
    both = [(one, other) for one, other in zip(right, wrong, strict=True) if one is not None and other is not None]
    plain = np.mean([(one > other) + 0.5 * (one == other) for one, _ in both for _, other in both])
    assert found.auroc == pytest.approx(plain) and found.low < found.auroc < found.high
    assert (found.n, found.unjudged) == (len(both), len(TRIALS) - len(both)) and found.unjudged > 0
    assert 0.55 < found.auroc < 0.95  # it errs in a quarter of its answers


def test_the_directions_of_the_right_triplets_are_those_of_the_scoring_stage(tiny_clip: Path) -> None:
    config = ScoringConfig(clip_model=str(tiny_clip), clip_pretrained=None, device="cpu")
    right, _ = direction_scores(config, TRIALS[:5])
    images = [
        [Image.fromarray(getattr(trial, side)) for trial in TRIALS[:5]] for side in ("original_image", "edited_image")
    ]
    scores, _ = load_scorer(config).score([trial.right for trial in TRIALS[:5]], *images)
    assert right == pytest.approx([each.direction for each in scores], abs=1e-5)


def test_a_run_keeps_what_was_measured_and_prints_it_beside_the_verdicts(
    tiny_config: PipelineConfig, judge: Judge
) -> None:
    assert judges_on_the_card(tiny_config) == [] and "not measured" in "".join(judges_inspected(tiny_config.out))
    with pytest.raises(ValueError, match="draws no trials"):
        try_judges(tiny_config, 4)
    evaluation = replace(tiny_config.evaluation, domain="ip2p.shapes.domain:ShapesDomain")
    config = replace(tiny_config, evaluation=evaluation, filtering=replace(tiny_config.filtering, vlm=judge.config))
    measured = try_judges(config, 14)
    assert read_reliability(config.out) == measured and set(measured) == {"clip_direction", "vlm_followed"}
    (section,) = judges_on_the_card(config)
    for text in (section, "\n".join(judges_inspected(config.out))):
        assert all(str(each) in text for each in measured.values()) and f"n = {measured['clip_direction'].n}" in text


def test_a_judge_that_says_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no score"):
        measure_reliability([None, 1.0], [1.0, None])
