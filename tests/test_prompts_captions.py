"""What counts as an entry of the captions file, and what is wrong with a file."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from ip2p.config import PromptsConfig
from ip2p.prompts.captions import ReadyLine, read_entries


def entries_of(path: Path, content: str | bytes, **options: Any) -> tuple[object, ...]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_entries(PromptsConfig(captions=str(path), **options))


def line(original: str, edit: str = "make it green", edited: str = "a green cat", **more: object) -> str:
    return json.dumps({"original_prompt": original, "edit_prompt": edit, "edited_prompt": edited, **more})


def test_blank_lines_and_repetitions_are_dropped_and_the_first_place_counts(tmp_path: Path) -> None:
    text = "\ufeffa cat\n\n  a   dog\t\n   \na cat\r\nA cat\na dog\n"
    assert entries_of(tmp_path / "captions.txt", text) == ("a cat", "a dog", "A cat")


def test_the_number_of_captions_is_limited_after_repetitions_are_dropped(tmp_path: Path) -> None:
    assert entries_of(tmp_path / "captions.txt", "a\na\nb\nc\n", num_captions=2) == ("a", "b")


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    assert entries_of(tmp_path / "captions.txt", "a\nb\n") == ("a", "b")
    assert entries_of(tmp_path / "captions.txt", "a\nb\nc\n") == ("a", "b", "c")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.txt", None, "does not exist"),
        ("empty.txt", b"", "holds no caption"),
        ("blank.txt", b"\n  \n", "holds no caption"),
        ("empty.jsonl", b"\n", "holds no caption"),
        ("latin.txt", b"caf\xe9\n", "not UTF-8"),
    ],
)
def test_a_file_without_captions_is_a_one_line_error_with_the_way_out(
    tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=said) as caught:
        read_entries(PromptsConfig(captions=str(path)))
    message = str(caught.value)
    assert str(path) in message and "Set prompts.captions" in message and "\n" not in message


def test_captions_that_are_not_set_are_an_error_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"prompts.captions is not set. Set prompts.captions to a text file"):
        read_entries(PromptsConfig())


def test_jsonl_lines_become_triplets_and_a_malformed_one_is_named_by_its_number(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    malformed = ["{not json", "[1]", line(""), json.dumps({"original_prompt": "a cat"}), line("a cat", edit_type=3)]
    content = "\n".join([line("a cat", edit_type="colour"), "", *malformed, line("a dog"), line("a cat")])
    with caplog.at_level(logging.WARNING):
        entries = entries_of(tmp_path / "triplets.jsonl", content)
    assert [entry.number for entry in entries if isinstance(entry, ReadyLine) and entry.triplet] == [1, 8]
    assert [entry.number for entry in entries if isinstance(entry, ReadyLine) and not entry.triplet] == [3, 4, 5, 6, 7]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 5
    assert all(f"line {number} " in message for number, message in zip(range(3, 8), said, strict=True))
    assert "edit_prompt is missing; the line has original_prompt" in said[3]


@pytest.mark.parametrize("key", ["input", "caption"])
def test_both_schemas_of_the_original_s_files_are_read(tmp_path: Path, key: str) -> None:
    record = {key: "a cat", "edit": "make it a dog", "output": "a dog", "url": "x"}
    (entry,) = entries_of(tmp_path / "released.jsonl", json.dumps(record))
    assert isinstance(entry, ReadyLine) and entry.triplet is not None
    assert (entry.triplet.original_prompt, entry.triplet.edited_prompt) == ("a cat", "a dog")
    assert entry.triplet.source == "released.jsonl"
