"""What a training sends to the hub: the pipeline and its card, not its states."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_dataset_push import Hub, hub  # noqa: F401
from tests.test_training_dropin import data, train  # noqa: F401

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.mark.slow
def test_the_pipeline_goes_up_and_neither_states_nor_logs(
    tmp_path: Path,
    data: Path,  # noqa: F811
    tiny_sd: Path,
    hub: Hub,  # noqa: F811
) -> None:
    flags = ["--max_train_steps", "2", "--checkpointing_steps", "1", "--use_lora", "--rank", "2"]
    assert train(tiny_sd, data, tmp_path / "out", *flags, "--push_to_hub", "--hub_model_id", "me/pairs") == 0
    assert hub.created[0]["name"] == "pairs" and hub.tokens == {"Bearer hf_secret"}
    (lines,) = hub.commits
    sent = {line["value"]["path"] for line in lines if line["key"] == "file"}
    assert {name.partition("/")[0] for name in sent} == {
        *("unet", "vae", "text_encoder", "tokenizer", "scheduler", "README.md", "model_index.json"),
        *("pytorch_lora_weights.safetensors", "conv_in.safetensors"),
    }
    assert sum(name.endswith(".safetensors") for name in sent) == 3 + 2


def test_without_a_token_nothing_is_trained(
    tmp_path: Path,
    data: Path,  # noqa: F811
    tiny_sd: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("ip2p.training.export.get_token", lambda: None)
    assert train(tiny_sd, data, tmp_path / "out", "--push_to_hub") == 2
    assert "Set the environment variable HF_TOKEN" in capsys.readouterr().out
    assert not (tmp_path / "out/cache").exists()
