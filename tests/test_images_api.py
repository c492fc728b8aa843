"""The backend images-api against a real HTTP server: each candidate has its pair once, or a reason."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ip2p import prompts, rendering, store
from ip2p.config import (
    EndpointConfig,
    FilteringConfig,
    ImagesApiConfig,
    PipelineConfig,
    RenderingConfig,
    fingerprint,
    to_dict,
)
from ip2p.config.files import read_config
from ip2p.images import encode_png, open_pixels
from ip2p.records import Candidate, EditTriplet, RenderSpec, hash_picture
from ip2p.rendering.backends import Failure, MakesPairs, backend_of
from ip2p.rendering.table import DrawnPair, EncodedPair
from tests.chat_server import running
from tests.images_server import ImagesServer, inverted
from tests.processes import fork, kill, wait_until
from tests.test_rendering_pictures import EVERYTHING, files_of, rows_of, write_folder

PASSING = ("429", "408", "500", "503", "hang", "half", "reset", "garbage")
KEY = "sesame-7"


def picture(number: int, size: tuple[int, int] = (24, 16)) -> bytes:
    chance = np.random.default_rng(number)
    return encode_png(chance.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


PICTURES = {hash_picture(content): content for content in map(picture, range(6))}
CANDIDATES = [
    Candidate(
        triplet=(triplet := EditTriplet(original_prompt="", edit_prompt=f"edit {n}", edited_prompt="", picture=name)),
        spec=RenderSpec(triplet_id=triplet.id, candidate=0, seed=10**12 + n, guidance_scale=4.0 + n, strength=0.5),
    )
    for n, name in enumerate(PICTURES)
]


@pytest.fixture
def server() -> Iterator[ImagesServer]:
    with running(ImagesServer()) as started:
        yield started


@pytest.fixture
def config(server: ImagesServer) -> RenderingConfig:
    endpoint = EndpointConfig(base_url=server.url, timeout=30.0, first_delay=0.01, max_delay=0.05, concurrency=4)
    drawn = ImagesApiConfig(drawn=("seed",))
    return RenderingConfig(backend="images-api", model="some-editor", server=endpoint, images_api=drawn)


@pytest.fixture
def backend(config: RenderingConfig, tmp_path: Path) -> MakesPairs:
    return backend_of(config).keeping(tmp_path / "answers")


def make(backend: MakesPairs, config: RenderingConfig) -> list[DrawnPair | EncodedPair | Failure]:
    return list(backend.make_pairs(config, CANDIDATES, PICTURES))


def with_server(config: RenderingConfig, **changed: Any) -> RenderingConfig:
    return replace(config, server=replace(config.server, **changed))


def check_pairs(made: list[DrawnPair | EncodedPair | Failure], *, without: int | None = None) -> None:
    """Each candidate has its own original, to the byte, and its own edit."""
    for number, (candidate, pair) in enumerate(zip(CANDIDATES, made, strict=True)):
        if number == without:
            continue
        assert isinstance(pair, EncodedPair) and pair.original == PICTURES[candidate.triplet.picture]
        expected = inverted(open_pixels(pair.original), {"seed": candidate.spec.seed % 2**31})
        assert np.array_equal(open_pixels(pair.edited), open_pixels(expected))


def test_each_picture_is_edited_once_by_its_own_instruction(
    backend: MakesPairs, config: RenderingConfig, server: ImagesServer
) -> None:
    check_pairs(make(backend, config))
    assert set(server.asked.values()) == {1} and len(server.asked) == 6
    for form in server.forms:
        assert form.keys() == {"path", "model", "prompt", "n", "seed", "image"}
        assert (form["path"], form["model"], form["n"]) == ("/v1/images/edits", "some-editor", "1")


def test_a_request_holds_what_the_config_names(
    backend: MakesPairs, config: RenderingConfig, server: ImagesServer
) -> None:
    asked = ImagesApiConfig(
        size="picture",
        response_format="b64_json",
        drawn=("guidance_scale", "strength", "image_guidance_scale"),
        fields={"quality": "low"},
    )
    make(backend, replace(config, images_api=asked))
    form = next(form for form in server.forms if form["prompt"] == "edit 2")
    further = {"size": "24x16", "response_format": "b64_json", "guidance_scale": "6.0", "strength": "0.5"}
    assert {name: form[name] for name in further} == further
    assert form["quality"] == "low" and "image_guidance_scale" not in form and "seed" not in form


@pytest.mark.parametrize("fault", PASSING)
def test_no_pair_is_lost_or_changed_by(
    backend: MakesPairs, config: RenderingConfig, server: ImagesServer, fault: str
) -> None:
    server.faults = lambda question, number: fault if number == 1 and question in ("edit 1", "edit 4") else ""
    check_pairs(make(backend, with_server(config, timeout=0.5) if fault == "hang" else config))
    assert [server.asked[f"edit {n}"] for n in (1, 4)] == [2, 2] or fault == "hang"
    assert sum(server.asked.values()) == 8 or fault == "hang"


@pytest.mark.parametrize(
    ("fault", "edit", "reason"),
    [
        ("400 content_policy_violation", None, "refused"),
        ("400", None, "refused"),
        ("empty", None, "an answer without a picture"),
        ("", b"<html>not a picture</html>", "an answer that is no picture"),
        ("", picture(9)[:-40], "an answer that is no picture"),
        ("", picture(9, (24, 24)), "an answer of another shape"),
    ],
)
def test_what_is_no_pair_fails_for_its_candidate_alone_and_is_not_asked_for_again(
    backend: MakesPairs, config: RenderingConfig, server: ImagesServer, fault: str, edit: bytes | None, reason: str
) -> None:
    server.faults = lambda question, number: fault if question == "edit 3" else ""
    server.edit = lambda before, form: edit if edit and form["prompt"] == "edit 3" else inverted(before, form)
    for _ in range(2):
        made = make(backend, config)
        assert made[3] == Failure(reason)
        check_pairs(made, without=3)
    assert set(server.asked.values()) == {1}


def test_an_edit_of_another_size_is_fitted_to_its_picture(
    backend: MakesPairs, config: RenderingConfig, server: ImagesServer
) -> None:
    server.edit = lambda before, form: picture(9, (48, 32))
    for pair in make(backend, config):
        assert isinstance(pair, EncodedPair) and open_pixels(pair.edited).shape == (16, 24, 3)


def test_a_server_that_stays_away_is_an_error_and_what_it_answered_is_kept(
    backend: MakesPairs, config: RenderingConfig, server: ImagesServer
) -> None:
    server.faults = lambda question, number: "503" if question == "edit 5" else ""
    patient = with_server(config, max_retries=2, concurrency=1)
    with pytest.raises(RuntimeError, match=r"no answer in 3 attempts: status 503.*run the same command again"):
        make(backend, patient)
    server.faults = lambda question, number: ""
    check_pairs(make(backend, patient))
    assert sorted(server.asked.values()) == [1] * 5 + [4]


@pytest.mark.parametrize(
    ("fault", "said"), [("hang", r"no answer within 0\.5 s"), ("half", "incomplete|closed|peer|Protocol")]
)
def test_what_stays_away_is_named(
    backend: MakesPairs, config: RenderingConfig, server: ImagesServer, fault: str, said: str
) -> None:
    server.faults = lambda question, number: fault
    with pytest.raises(RuntimeError, match=f"in 1 attempts: .*{said}"):
        make(backend, with_server(config, max_retries=0, concurrency=1, timeout=0.5 if fault == "hang" else 30.0))


def test_nobody_at_the_address_is_named(backend: MakesPairs, config: RenderingConfig) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(RuntimeError, match=f"{url} gave no answer in 1 attempts: .*refused"):
            make(backend, with_server(config, base_url=url, max_retries=0, concurrency=1))


def test_a_dead_proxy_is_named_without_its_password(
    backend: MakesPairs, config: RenderingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://me:secret@127.0.0.1:9")
    away = with_server(config, base_url="http://images.example/v1", max_retries=0, concurrency=1)
    with pytest.raises(RuntimeError, match=r"no answer through the proxy http://127\.0\.0\.1:9 in 1") as refused:
        make(backend, away)
    assert "secret" not in str(refused.value)


def test_a_server_that_refuses_everything_is_a_mistake_and_nothing_is_kept_of_it(
    backend: MakesPairs, config: RenderingConfig, server: ImagesServer
) -> None:
    server.faults = lambda question, number: "400"
    with pytest.raises(ValueError, match=r"refused every request: .*fault 400.*Check rendering\.model"):
        make(backend, config)
    server.faults = lambda question, number: ""
    check_pairs(make(backend, config))


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(
    backend: MakesPairs,
    config: RenderingConfig,
    server: ImagesServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MY_KEY", f"{KEY}\n")
    keyed = with_server(config, api_key_variable="MY_KEY", concurrency=1)
    server.faults = lambda question, number: "429" if number == 1 else ""
    with caplog.at_level(logging.DEBUG):
        make(backend, keyed)
    assert server.keys == {f"Bearer {KEY}"}
    assert KEY not in json.dumps(to_dict(keyed)) and KEY not in caplog.text
    assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.parametrize("key", [KEY, f"{KEY}\nline", f"{KEY}\N{EN DASH}"])
def test_a_key_that_is_wrong_or_cannot_be_sent_is_a_mistake_whose_message_does_not_tell_it(
    backend: MakesPairs, config: RenderingConfig, server: ImagesServer, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("MY_KEY", key)
    server.faults = lambda question, number: "401"
    keyed = with_server(config, api_key_variable="MY_KEY", concurrency=1, max_retries=0)
    with pytest.raises(ValueError, match="the key in MY_KEY") as refused:
        make(backend, keyed)
    assert KEY not in str(refused.value)
    assert sum(server.asked.values()) == (key == KEY)


def test_a_picture_is_fetched_from_its_address_without_the_key_and_again_after_a_fault(
    backend: MakesPairs, config: RenderingConfig, server: ImagesServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.by_address = True
    server.fetch_faults = lambda number: 503 if number == 2 else 0
    check_pairs(make(backend, config))
    assert set(server.asked.values()) == {1}
    assert server.fetched == [None] * 7


def test_an_address_without_a_picture_fails_for_its_candidate_alone(
    backend: MakesPairs, config: RenderingConfig, server: ImagesServer
) -> None:
    server.by_address = True
    server.fetch_faults = lambda number: 404 if number == 1 else 0
    made = make(backend, with_server(config, concurrency=1))
    assert made[0] == Failure("an answer without a picture")
    check_pairs(made, without=0)


def test_no_more_requests_than_allowed_are_under_way(
    backend: MakesPairs, config: RenderingConfig, server: ImagesServer
) -> None:
    def wait_for_another(question: str, number: int) -> str:
        with server.lock:
            server.lock.wait_for(lambda: server.most_at_once >= 2)
        return ""

    server.faults, server.seconds = wait_for_another, 0.05
    make(backend, with_server(config, concurrency=2))
    assert server.most_at_once == 2


def test_where_and_how_a_server_is_reached_changes_no_result_but_what_is_asked_does(config: RenderingConfig) -> None:
    assert fingerprint(with_server(config, base_url="http://elsewhere/v1", timeout=9.0)) == fingerprint(config)
    assert fingerprint(replace(config, images_api=ImagesApiConfig(size="auto"))) != fingerprint(config)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"server": EndpointConfig()}, "rendering.server.base_url is not set"),
        ({"model": ""}, "rendering.model is not set"),
        ({"first_look_steps": 2}, "rendering.first_look_steps has no meaning"),
        ({"strength": (0.2, 0.4)}, r"rendering.strength is not sent .*images_api.drawn"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_before_anything_is_asked(
    backend: MakesPairs, config: RenderingConfig, changed: dict[str, Any], said: str
) -> None:
    backend.check(config)
    with pytest.raises(ValueError, match=said):
        backend.check(replace(config, **changed))


def test_form_fields_that_are_decided_elsewhere_are_refused() -> None:
    with pytest.raises(ValueError, match="drawn may hold seed.*got p2p"):
        ImagesApiConfig(drawn=("p2p",))
    with pytest.raises(ValueError, match="fields must not hold what is set elsewhere, got prompt"):
        ImagesApiConfig(fields={"prompt": "x"})


@pytest.fixture
def run(tiny_config: PipelineConfig, config: RenderingConfig, tmp_path: Path) -> PipelineConfig:
    """A run that edits nine pictures in batches of four."""
    source = write_folder(tmp_path / "source", [f"a small red circle on a white background {n}" for n in range(9)])
    Image.new("RGB", (48, 80), "teal").save(source / "8.png")  # a server's pictures keep their sizes
    asked = replace(tiny_config.prompts, pictures=str(source), backend="template", shard_size=9)
    made = replace(config, batch_size=4, num_candidates=1, keep_rejected_images=True)
    return replace(tiny_config, prompts=asked, rendering=made)


def write(run: PipelineConfig) -> dict[str, bytes]:
    prompts.write_shard(run, 0)
    rendering.write_shard(run, 0)
    return files_of(run)


def test_a_run_that_broke_off_asks_for_what_is_missing_and_ends_as_an_untouched_one(
    run: PipelineConfig, server: ImagesServer, tmp_path: Path
) -> None:
    whole = write(replace(run, out=tmp_path / "whole"))
    assert (num := sum(server.asked.values())) == 9
    server.faults = lambda question, number: "503" if sum(server.answered.values()) >= num + 6 else ""
    with pytest.raises(RuntimeError, match="run the same command again"):
        write(replace(run, rendering=with_server(run.rendering, max_retries=0, concurrency=1)))
    server.faults = lambda question, number: ""
    assert write(run) == whole
    assert sum(server.answered.values()) == 2 * num


def test_pairs_that_were_not_kept_are_taken_from_what_the_server_answered(
    run: PipelineConfig, server: ImagesServer
) -> None:
    run = replace(run, rendering=replace(run.rendering, keep_rejected_images=False))
    strict = FilteringConfig(thresholds=replace(EVERYTHING, direction=2.0))
    write(replace(run, filtering=strict))
    assert rows_of(run, "pairs") == []
    rendering.refilter(replace(run, filtering=FilteringConfig(thresholds=EVERYTHING, max_pairs_per_triplet=9)))
    assert len(rows_of(run, "pairs")) == 9
    assert sum(server.asked.values()) == 9


def write_saved(words: list[str]) -> int:
    """A process that makes the shard of a saved config."""
    write(read_config(Path(words[0])))
    return 0


@pytest.mark.slow
def test_a_killed_process_costs_the_requests_in_flight(
    run: PipelineConfig, server: ImagesServer, tmp_path: Path
) -> None:
    whole = write(replace(run, out=tmp_path / "whole"))
    server.answered.clear()
    server.seconds = 0.3
    slow = replace(run, rendering=with_server(run.rendering, concurrency=2, timeout=9.0))
    saved = slow.out / "config.json"
    store.write_json(saved, to_dict(slow))
    child = fork(write_saved, [str(saved)], tmp_path / "log")
    wait_until(lambda: sum(server.answered.values()) >= 5, child)
    kill(child)
    server.wait_until_idle()
    server.seconds = 0.0
    assert write(slow) == whole
    assert sum(server.answered.values()) <= 9 + 2 + 1
