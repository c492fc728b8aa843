"""The command that starts a training, and the launch configs that come with the package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType

from ip2p.training.launching import LAUNCH_CONFIGS, launch_command, with_shipped_configs

KINDS = {
    "fsdp": DistributedType.FSDP,
    "multi_gpu": DistributedType.MULTI_GPU,
    "deepspeed": DistributedType.DEEPSPEED,
}


@pytest.mark.parametrize("path", sorted(LAUNCH_CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_every_shipped_config(path: Path) -> None:
    found = load_config_from_file(str(path))
    assert found.distributed_type == KINDS[path.stem]
    assert found.mixed_precision == "bf16"
    known = {action.dest for action in launch_command_parser()._actions}
    assert set(found.fsdp_config) <= known
    assert bool(found.fsdp_config) == (path.stem == "fsdp")


@pytest.mark.parametrize("words", ["--config_file fsdp", "--config-file=fsdp", "--config_file fsdp.yaml"])
def test_a_shipped_config_is_given_by_its_name(words: str, tmp_path: Path) -> None:
    found = with_shipped_configs([*words.split(), "--num_processes", "4"])
    command = launch_command(tmp_path / "config.json", found)
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    assert command[:3] == launcher
    module = command.index("--module")
    assert command[module + 1 :] == ["ip2p.training", "--config", str(tmp_path / "config.json")]
    arguments = launch_command_parser().parse_args([*command[3:module], "--module", "ip2p.training"])
    assert arguments.config_file == str(LAUNCH_CONFIGS / "fsdp.yaml")
    assert arguments.num_processes == 4


def test_a_config_file_of_ones_own_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fsdp.yaml").touch()
    for words in (["--config_file", "fsdp.yaml"], ["--config_file", "elsewhere/fsdp"], ["--multi_gpu", "fsdp"]):
        assert with_shipped_configs(words) == words


def test_a_name_that_no_config_has_is_told_those_there_are() -> None:
    with pytest.raises(ValueError, match="Give a path, or one of deepspeed, fsdp, multi_gpu"):
        with_shipped_configs(["--config_file", "fdsp"])
