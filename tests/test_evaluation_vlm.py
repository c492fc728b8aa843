"""The vision-language judge: asked over real sockets, and a real small model in this process."""

from __future__ import annotations

import base64
import io
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ip2p.config import PipelineConfig, ServerConfig, VlmConfig
from ip2p.evaluation import evaluate
from ip2p.evaluation.cases import EditCase
from ip2p.evaluation.measures.vlm import VlmMeasure
from ip2p.picture_judge import local_judge, read_scores
from tests.test_evaluation import trained, with_domain  # noqa: F401
from tests.tiny import write_tiny_vlm


class Judge(ThreadingHTTPServer):
    """Answers by what the pictures hold: the mean of each, in tenths of the range."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.questions: list[str] = []
        self.garbled = False
        self.broken = 0
        self.fault: Callable[[str], str] = lambda question: ""
        """What happens to a question: a status, or `nonsense`."""
        self.answers_left: int | None = None
        """Answers after which the server fails."""
        self.drifts = False
        """True for a judge that changes its mind each time that it is asked the same."""
        self.served = "judge"
        self.answered: Counter[str] = Counter()
        self.lock = threading.Lock()

    def scores(self, question: str, levels: Sequence[float]) -> dict[str, float]:
        """Returns the scores that the question's example names."""
        names = re.findall(r'"(\w+)": \d', question[question.rindex("{") :])
        if names == ["followed", "kept"]:
            return dict(zip(names, levels, strict=True))
        if names == ["natural", "clean"]:
            return dict(zip(names, (levels[0], 10 - levels[0]), strict=True))
        asked = f"{question} {levels}"
        times = self.answered[asked] if self.drifts else 0
        self.answered[asked] += 1
        return {name: whole_score(name, levels[-1], times) for name in names}

    @property
    def config(self) -> VlmConfig:
        url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        return VlmConfig(model="judge", server=ServerConfig(base_url=url, first_delay=0.01, max_retries=2))


def whole_score(name: str, level: float, times: int = 0) -> int:
    """The judge's rule for scores from 1 to 5, by the level of the last picture."""
    return 1 + (int(10 * level) + len(name) + times) % 5


class _Handler(BaseHTTPRequestHandler):
    server: Judge

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        *pictures, question = body["messages"][0]["content"]
        levels = [_level(picture["image_url"]["url"]) for picture in pictures]
        server, fault = self.server, self.server.fault(question["text"])
        with server.lock:
            server.questions.append(question["text"])
            broken, server.broken = server.broken > 0, server.broken - 1
            if server.answers_left is not None:
                broken, server.answers_left = server.answers_left <= 0, server.answers_left - 1
            scores = {} if broken or fault else server.scores(question["text"], levels)
        garbled = server.garbled or fault == "nonsense"
        text = "I would rather not say." if garbled else f"Well: {json.dumps({'why': 'x', **scores})} Done."
        reply = {"id": "x", "object": "chat.completion", "created": 0, "model": server.served}
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        content = json.dumps({**reply, "choices": [choice]}).encode()
        self.send_response(503 if broken else int(fault) if fault.isdigit() else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _level(url: str) -> float:
    with Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))) as image:
        return round(float(np.asarray(image).mean()) / 25.5, 1)


@pytest.fixture
def judge() -> Iterator[Judge]:
    with Judge() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def case() -> EditCase:
    """A plain one."""
    grey = np.full((16, 16, 3), 51, np.uint8)
    return EditCase(
        original_image=grey, edit_prompt="make it {bright}", original_prompt="", edited_prompt="", edit_type="x"
    )


def test_scores_count_by_the_lower_one_and_the_whole_is_their_geometric_mean(judge: Judge, tmp_path: Path) -> None:
    measure = VlmMeasure(judge.config, tmp_path / "answers.jsonl")
    bright = np.full((16, 16, 3), 204, np.uint8)
    (row,) = measure([case()], [case().original_image], [bright])
    # the pair: followed 2 (the mean of the first), kept 8; alone: natural 8, clean 2
    assert row == {"vlm_followed": 2.0, "vlm_kept": 8.0, "vlm_quality": 2.0, "vlm": 2.0}
    assert any('"make it {bright}"' in question for question in judge.questions)


def test_no_answer_is_asked_for_twice_and_faults_pass(judge: Judge, tmp_path: Path) -> None:
    judge.broken = 1
    measure = VlmMeasure(judge.config, tmp_path / "answers.jsonl")
    pictures = [np.full((16, 16, 3), level, np.uint8) for level in (51, 102, 153)]
    first = measure([case()] * 3, [case().original_image] * 3, pictures)
    asked = len(judge.questions)
    assert asked == 7  # two questions an edit, one of them twice
    assert (
        VlmMeasure(judge.config, tmp_path / "answers.jsonl")([case()] * 3, [case().original_image] * 3, pictures)
        == first
    )
    assert len(judge.questions) == asked


def test_an_answer_without_scores_leaves_them_out(judge: Judge, tmp_path: Path) -> None:
    judge.garbled = True
    (row,) = VlmMeasure(judge.config, tmp_path / "a.jsonl")([case()], [case().original_image], [case().original_image])
    assert set(row.values()) == {None}


def test_a_server_that_is_away_says_so(tmp_path: Path) -> None:
    config = VlmConfig(model="x", server=ServerConfig(base_url="http://127.0.0.1:9/v1", max_retries=0))
    with pytest.raises(RuntimeError, match="gave no answer"):
        VlmMeasure(config, tmp_path / "a.jsonl")([case()], [case().original_image], [case().original_image])


@pytest.mark.parametrize(
    "answer, scores",
    [
        ('{"followed": 3, "kept": 8}', (3.0, 8.0)),
        ('first {"followed": 1, "kept": 1} then {"why": "x", "followed": 4.5, "kept": 10}.', (4.5, 10.0)),
        ('{"followed": 11, "kept": 8}', None),
        ('{"followed": "much", "kept": 8}', None),
        ('{"kept": 8}', None),
        ("7 and 8", None),
    ],
)
def test_scores_are_read_from_the_last_object_and_must_lie_in_their_range(
    answer: str, scores: tuple[float, float] | None
) -> None:
    assert read_scores(answer, ("followed", "kept")) == scores


@pytest.mark.slow
def test_a_run_is_judged_edit_by_edit_and_not_its_sweeps(judge: Judge, trained: PipelineConfig) -> None:  # noqa: F811
    found = evaluate(with_domain(trained, num_edits=2, vlm=judge.config))
    records = pq.read_table(trained.out / "evaluation" / "scores.parquet").to_pylist()
    for record in records:
        assert (record["vlm"] is not None) == (record["kind"] == "edit")
    assert found["vlm"] is not None and found["baselines"]["copy"]["vlm_kept"] is not None
    assert "vlm" not in found["curve"][0]


def test_a_vlm_without_an_address_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="base_url"):
        VlmConfig(model="x")


@pytest.fixture
def tiny_vlm(tmp_path: Path) -> Path:
    """A LLaVA of random weights with the domain's words."""
    return write_tiny_vlm(tmp_path)


def test_a_local_model_sees_the_pictures_and_the_same_question_has_the_same_answer(
    tiny_vlm: Path, tmp_path: Path
) -> None:
    config = VlmConfig(model=str(tiny_vlm), backend="local", device="cpu", dtype="float32", max_new_tokens=8)
    ask = local_judge(config)
    pictures = [Image.new("RGB", (40, 32), colour) for colour in ("red", "blue")]
    assert ask(pictures, "red or blue") == ask(pictures, "red or blue")
    measure = VlmMeasure(replace(config), tmp_path / "a.jsonl")
    (row,) = measure([case()], [case().original_image], [case().original_image])
    assert set(row) == {column.name for column in measure.columns}
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and all(line["question"] for line in lines)
