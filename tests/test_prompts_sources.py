"""Captions of every source, cleaned and counted."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ip2p.config import CleaningConfig, PipelineConfig, PromptsConfig
from ip2p.prompts import num_shards, summarise
from ip2p.prompts.captions import ReadyLine, clean_caption, read_captions, read_entries

TEXTS = ("a cat on a mat", "a dog, running", "ein Hund im Park", "a cat on a mat", "")
CLEAN = ("a cat on a mat", "a dog, running", "ein Hund im Park")


def write_source(folder: Path, suffix: str, column: str = "caption") -> Path:
    path, rows = folder / f"source{suffix}", [{"n": number, column: text} for number, text in enumerate(TEXTS)]
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, ["n", column])
        writer.writeheader()
        writer.writerows(rows)
        path.write_text(text.getvalue())
    elif suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        path.write_text("\n".join(TEXTS))
    return path


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".parquet", ".jsonl"])
def test_every_kind_of_file_gives_the_same_captions(tmp_path: Path, suffix: str) -> None:
    path = write_source(tmp_path, suffix, column="words")
    found = read_captions(PromptsConfig(captions=str(path), captions_column="words" if suffix != ".txt" else None))
    assert found.entries == CLEAN
    assert found.left_out == ({"duplicate": 1} if suffix == ".txt" else {"duplicate": 1, "empty": 1})


def test_a_usual_column_needs_not_be_named_and_an_unusual_one_does(tmp_path: Path) -> None:
    assert read_entries(PromptsConfig(captions=str(write_source(tmp_path, ".csv", "TEXT")))) == CLEAN
    with pytest.raises(ValueError, match=r"it has n, words. Set prompts.captions_column to one of them"):
        read_entries(PromptsConfig(captions=str(write_source(tmp_path, ".csv", "words"))))


def test_a_broken_line_of_a_jsonl_of_captions_loses_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text('{"caption": "a cat"}\n{broken\n{"caption": "a dog"}')
    with caplog.at_level(logging.WARNING):
        assert read_entries(PromptsConfig(captions=str(path), captions_column="caption")) == ("a cat", "a dog")
    assert "line 2 is left out" in caplog.text


@pytest.mark.parametrize(
    ("text", "settings", "expected"),
    [
        ("  a   cat ", {}, ("a cat", "")),
        ("<b>a cat</b> &amp; a dog https://x.y/z", {"strip_markup": True}, ("a cat & a dog", "")),
        ("a grey cat asleep IMG_0042.JPG", {"strip_markup": True}, ("a grey cat asleep", "")),
        ("<img src='https://a.b/c.png'> cat", {"strip_markup": True}, ("cat", "markup")),
        ("a cat", {"min_words": 3}, ("a cat", "too_short")),
        ("a cat on a mat", {"max_words": 4}, ("a cat on a mat", "too_long")),
        ("ein Hund im Park", {"language": "en"}, ("ein Hund im Park", "language")),
    ],
)
def test_captions_are_cleaned(text: str, settings: dict[str, Any], expected: tuple[str, str]) -> None:
    assert clean_caption(text, CleaningConfig(**settings)) == expected


def test_what_was_left_out_is_counted_by_reason(tiny_config: PipelineConfig, tmp_path: Path) -> None:
    cleaning = CleaningConfig(language="en", min_words=4)
    prompts = PromptsConfig(captions=str(write_source(tmp_path, ".csv")), cleaning=cleaning)
    config = replace(tiny_config, prompts=prompts)
    counts = {"too_short": 1, "language": 1, "duplicate": 1, "empty": 1}
    assert dict(read_captions(prompts).left_out) == counts
    assert summarise(config)["left_out_captions"] == counts


@pytest.fixture
def in_memory() -> Iterator[fsspec.AbstractFileSystem]:
    memory = fsspec.filesystem("memory")
    yield memory
    memory.rm("/captions", recursive=True)


def test_a_url_is_copied_into_the_run_and_stays_as_it_was(
    tiny_config: PipelineConfig, in_memory: fsspec.AbstractFileSystem
) -> None:
    in_memory.pipe_file("/captions/some.txt", b"a cat\na dog\na cat\n")
    config = replace(tiny_config, prompts=PromptsConfig(captions="memory://captions/some.txt", shard_size=1))
    assert num_shards(config) == 2
    in_memory.pipe_file("/captions/some.txt", b"a horse\n")
    assert read_entries(config.prompts, config.out) == ("a cat", "a dog")
    assert summarise(config)["left_out_captions"] == {"duplicate": 1}
    assert read_entries(config.prompts) == ("a horse",)


def test_triplets_at_a_url_bear_its_name(tiny_config: PipelineConfig, in_memory: fsspec.AbstractFileSystem) -> None:
    line = json.dumps({"input": "a cat", "edit": "make it a dog", "output": "a dog"})
    in_memory.pipe_file("/captions/ready.jsonl", line.encode())
    (entry,) = read_entries(PromptsConfig(captions="memory://captions/ready.jsonl"), tiny_config.out)
    assert isinstance(entry, ReadyLine) and entry.triplet and entry.triplet.source == "ready.jsonl"


def test_a_url_that_cannot_be_opened_is_a_one_line_error(tmp_path: Path) -> None:
    for source in ("nonsense://x/y.txt", "memory://captions/none.txt"):
        with pytest.raises(ValueError, match="cannot be opened") as caught:
            read_entries(PromptsConfig(captions=source))
        assert "\n" not in str(caught.value)


def test_a_hub_dataset_is_streamed_up_to_the_number_that_is_wanted(
    tiny_config: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []

    def rows() -> Iterator[dict[str, Any]]:
        for number in range(1000):
            taken.append(number)
            yield {"TEXT": f"caption {number // 2}"}

    def load(name: str, **options: Any) -> Any:
        assert (name, options) == ("owner/captions", {"split": "train", "revision": "abc", "streaming": True})
        return datasets.IterableDataset.from_generator(rows)

    monkeypatch.setattr(datasets, "load_dataset", load)
    prompts = PromptsConfig(captions="owner/captions", captions_revision="abc", num_captions=5)
    assert read_entries(prompts, tiny_config.out) == tuple(f"caption {number}" for number in range(5))
    assert len(taken) < 20
    taken.clear()
    assert len(read_entries(prompts, tiny_config.out)) == 5 and not taken
    with pytest.raises(ValueError, match="num_captions is not set for the hub dataset owner/captions"):
        read_entries(replace(prompts, num_captions=None))
