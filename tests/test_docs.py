"""Every command of README and docs runs, at tiny size, and every name in them is one that exists.

Commands run in order, page by page, each page in a folder of its own with a finished run in it. What cannot run here is
listed with the reason; a command that is neither run nor listed fails, and so does a reason without its command.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import NoneType

import pytest

from ip2p import presets
from ip2p.cli import COMMANDS, main
from ip2p.cli.parsing import SHORT_FORMS, MoreHelp, flags_of
from ip2p.config import PipelineConfig, TrainingJob
from ip2p.dataset.layouts import LAYOUTS
from tests import pages, prefect_server
from tests.chat_server import running, serving
from tests.docs_files import write_files, write_hub
from tests.docs_workplace import Models, Workplace, tiny_presets, write_dino
from tests.images_server import ImagesServer
from tests.pages import PAGES, ROOT, Command
from tests.test_evaluation_vlm import Judge
from tests.tiny_flow import write_tiny_klein, write_tiny_kontext, write_tiny_sd3

NEEDS_A_HUB = "uploads: tests/test_dataset_push.py and tests/test_training_hub.py do, to a hub of their own"
NEEDS_A_CLUSTER = "needs other machines: tests/flows/test_ray.py has a cluster on this one"
NEEDS_GPUS = "needs several GPUs: tests/test_training_run.py and tests/test_training_sharding.py have two processes"
NEEDS_A_CARD = "needs a GPU: tests/test_benchmarks.py runs the kit in miniature"
NOT_RUN = {
    "make run": "installs and takes a quarter of an hour; what it calls is run here",
    "make test": "is what runs this",
    "make gpu SCRIPT=train_instruct_pix2pix.py": NEEDS_A_CARD,
    "pip install --no-index --no-deps --target site 'wheels/*.whl'": NEEDS_A_CARD,
    "PYTHONPATH=site make gpu GPU_PYTHON=python3": NEEDS_A_CARD,
    "ray start --head": NEEDS_A_CLUSTER,
    "prefect server start --host 0.0.0.0": "opens a port to others; tests/flows has a server on this machine",
    "export PREFECT_API_URL=http://HEAD:4200/api": NEEDS_A_CLUSTER,
    "ip2p dataset sd15 --prompts.captions captions.txt --out /shared/run --runner ray --ray-address HEAD:6379 "
    "--runner.num-gpus 1": NEEDS_A_CLUSTER,
    "ip2p dataset sd15 --prompts.captions s3://bucket/captions.txt --out s3://bucket/run --runner ray "
    "--ray-address HEAD:6379": NEEDS_A_CLUSTER,
    "ip2p dataset sd15 --prompts.captions captions.txt --out runs/mine --dataset.license cc-by-4.0 "
    "--push-to-hub OWNER/NAME": NEEDS_A_HUB,
    "python -m ip2p.training --pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5 "
    "--dataset_name fusing/instructpix2pix-1000-samples --output_dir trained/mine --push_to_hub "
    "--hub_model_id OWNER/NAME": NEEDS_A_HUB,
    "hf upload OWNER/NAME runs/mine/model": NEEDS_A_HUB,
    "accelerate launch --multi_gpu --num_processes 4 -m ip2p.training "
    "--pretrained_model_name_or_path=stable-diffusion-v1-5/stable-diffusion-v1-5 "
    "--dataset_name=fusing/instructpix2pix-1000-samples --output_dir=trained/four --train_batch_size=16 "
    "--max_train_steps=15000 --conditioning_dropout_prob=0.05 --mixed_precision=bf16 --use_ema": NEEDS_GPUS,
    "ip2p train sd15 --data timbrooks/instructpix2pix-clip-filtered --out runs/four "
    "'--training.launch-args=--multi_gpu --num_processes 4'": NEEDS_GPUS,
    "ip2p train sdxl --data timbrooks/instructpix2pix-clip-filtered --out runs/split "
    "'--training.launch-args=--config_file fsdp --num_processes 4'": NEEDS_GPUS,
    "ip2p evaluate runs/shapes --evaluation.lpips alex": "fetches weights; tests/test_evaluation_measures.py has some",
    "ip2p dataset invert runs/shapes runs/inverse": "needs captions that the domain can read, of which the rules here "
    "write none: tests/test_dataset_inverse.py has some",
    "ip2p dataset sessions runs/shapes --continued-by runs/inverse --out exports/sessions": "needs the inverse run: "
    "tests/test_dataset_sessions.py has one",
    "ip2p dataset compose runs/shapes runs/composed --continued-by runs/inverse --join": "needs the inverse run too",
    "ip2p dataset preferences runs/judged --own-originals --out exports/preferences": "needs rejected pairs, of which "
    "the filter here leaves none: tests/test_dataset_preferences.py has some",
    "prefect deployment run 'ip2p dataset/dataset'": "wants `ip2p serve` beside it",
}

OWN_FLAGS = {"--help", "--debug", "--version", *SHORT_FORMS.values(), *flags_of(MoreHelp)}
"""Flags of every command."""
OTHER_PROGRAMS = {"--multi_gpu", "--config_file", "--num_processes", "--head", "--address", "--host"} | {
    *("--no-index", "--no-deps", "--target"),
    *(flag for layout in LAYOUTS.values() for flag in re.findall(r"--[\w-]+", layout.start)),
}
"""Flags of accelerate, ray, prefect, pip and other trainers."""
BENCHMARK = "python -m tests.benchmarks."
"""Begins a command that takes minutes to hours, on models of gigabytes, and prints figures.

Only its flags are looked at here; tests/test_benchmarks.py runs what the benchmarks are made of.
"""
READY = {"app": "The page is at", "serve": "Ctrl-C ends them"}
"""Commands that run until Ctrl-C, and what they say when they are ready for it."""

EVERY_COMMAND = [command for page in PAGES for command in pages.commands(page)]
RUN = [each for each in EVERY_COMMAND if each.text not in NOT_RUN and not each.text.startswith(BENCHMARK)]


@pytest.fixture(scope="module")
def prefect() -> Iterator[None]:
    """A server for all commands, so that none starts its own."""
    from prefect.settings import PREFECT_API_URL

    with prefect_server.harness(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_URL", str(PREFECT_API_URL.value()))
        yield


@pytest.fixture(scope="module")
def workplace(
    tmp_path_factory: pytest.TempPathFactory, tiny_sd: Path, tiny_xl: Path, tiny_clip: Path, prefect: None
) -> Iterator[Workplace]:
    """Tiny presets, files and names, and a folder in which `ip2p run shapes` has been through."""
    root = tmp_path_factory.mktemp("docs")
    flows = {
        "diffusion-3.5": write_tiny_sd3(root / "sd3"),
        "Kontext": write_tiny_kontext(root / "kontext"),
        "FLUX.2-klein": write_tiny_klein(root / "klein"),
    }
    models = Models(tiny_sd, tiny_xl, tiny_clip, write_dino(root / "dino"), flows)
    hub = write_hub(root / "hub")
    finished = root / "finished"
    write_files(finished)
    shutil.copytree(hub["my-parquet-folder"], finished / "my-parquet-folder")
    with pytest.MonkeyPatch.context() as patch, serving() as chat, Judge() as judge, running(ImagesServer()) as images:
        threading.Thread(target=judge.serve_forever, daemon=True).start()
        for name, preset in tiny_presets(models, finished / "captions.txt").items():
            patch.setitem(presets.PRESETS, name, preset)
        patch.setattr("ip2p.training.launching.run_child", _train_here)
        patch.setenv("IP2P_SCRATCH", str(root / "scratch"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        servers = {"chat": chat.url, "judge": judge.config.server.base_url, "images": images.url}
        place = Workplace(root=root, finished=finished, models=models, hub=hub, servers=servers)
        with _in(finished):
            assert main(["run", "shapes"]) == 0
            shutil.copytree("runs/shapes", "runs/slower")
        yield place
        judge.shutdown()


def _train_here(command: list[str]) -> None:
    """What the launcher starts as a child runs in this process: a tenth of the time; tests/flows has it whole.

    It is in the flow's thread, where no signal is heard.
    """
    from ip2p.training.flags import parse
    from ip2p.training.loop import Stop
    from ip2p.training.run import run

    with _own_accelerator():
        run(parse(command[command.index("ip2p.training") + 1 :]), Stop())


def _train(words: Sequence[str]) -> int:
    from ip2p.training.__main__ import main as train

    with _own_accelerator():
        return train(list(words))


@contextlib.contextmanager
def _own_accelerator() -> Iterator[None]:
    """Leaves no state of accelerate behind, which keeps its precision per process."""
    from accelerate.state import AcceleratorState

    try:
        yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


@contextlib.contextmanager
def _in(folder: Path) -> Iterator[None]:
    """Works in a folder and leaves the process's signals and logs as they were."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    root = logging.getLogger()
    logs = list(root.handlers)
    with contextlib.chdir(folder):
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            for added in [each for each in root.handlers if each not in logs]:
                root.removeHandler(added)
                added.close()


def _name_of(command: Command) -> str:
    return f"{Path(command.page).stem}-{command.line}-{re.sub(r'[^a-z0-9]+', '-', command.text.lower())[:50]}"


@pytest.mark.slow
@pytest.mark.parametrize("command", RUN, ids=_name_of)
def test_a_command_of_the_docs_does_what_its_page_says(command: Command, workplace: Workplace) -> None:
    with _in(workplace.enter(command.page)):
        if command.is_python:
            exec(compile(workplace.snippet(command.text), command.page, "exec"), {})
            return
        words = workplace.words(command)
        started = time.time()
        assert _run(words) == 0
        for promised in workplace.promised(words):
            assert promised.exists() and _newest(promised) >= started - 1 or _is_said_to_be_done(words), promised


def _run(words: list[str]) -> int:
    program, *rest = words
    if program == "ip2p" and rest[0] in READY:
        return _run_until_stopped(rest)
    if program == "ip2p":
        return _exit_code(lambda: main(rest))
    assert "ip2p.training" in rest, words
    return _exit_code(lambda: _train(rest[rest.index("ip2p.training") + 1 :]))


def _exit_code(call: Callable[[], int]) -> int:
    """Help ends by an exit."""
    try:
        return call()
    except SystemExit as end:
        return int(end.code or 0)


def _run_until_stopped(words: list[str]) -> int:
    """Starts, waits until it is ready, presses Ctrl-C; 0 where that ends it as it should."""
    heard = "signal.signal(signal.SIGINT, signal.default_int_handler)"  # a job in the background is born deaf to it
    code = f"import signal, sys; from ip2p.cli import main; {heard}; sys.exit(main())"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    started = subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, text=True, env=environment)
    with started:
        said = []
        for line in started.stdout or ():
            said.append(line)
            if READY[words[0]] in line:
                started.send_signal(signal.SIGINT)
                break
        rest, _ = started.communicate(timeout=60)
    assert any(READY[words[0]] in line for line in said), said
    return 0 if started.returncode in (0, 130) else started.returncode


def _newest(path: Path) -> float:
    return max([path.stat().st_mtime, *(each.stat().st_mtime for each in path.rglob("*"))])


def _is_said_to_be_done(words: Sequence[str]) -> bool:
    """`ip2p run shapes` in a folder where it has been through does no work, and `--explain` nowhere."""
    return list(words) in (["ip2p", "run", "shapes"], ["ip2p", "run", "shapes", "--explain"])


def test_what_is_not_run_is_a_command_of_the_docs() -> None:
    assert set(NOT_RUN) <= {command.text for command in EVERY_COMMAND}


def test_every_word_of_the_command_is_told_of() -> None:
    told = " ".join(
        [command.text for command in EVERY_COMMAND] + [span for page in PAGES for span in pages.spans(page)]
    )
    assert [word for word in COMMANDS if f"ip2p {word}" not in told] == []


def _known_flags() -> set[str]:
    trained = {f"--{flag[2:].replace('-', '_')}" for flag in flags_of(TrainingJob)}
    negated = {flag.replace("--", "--no_", 1) for flag in trained}
    kinds = {
        hint for action in COMMANDS.values() for hint in typing.get_type_hints(action).values() if hint is not NoneType
    }
    taken = {flag for kind in kinds for flag in flags_of(kind)}
    benchmarks = {
        flag
        for path in (ROOT / "tests" / "benchmarks").glob("*.py")
        for flag in re.findall(r"add_argument\(\s*\"(--[\w-]+)", path.read_text())
    }
    return trained | negated | taken | benchmarks | OWN_FLAGS | OTHER_PROGRAMS


@pytest.mark.parametrize("page", PAGES)
def test_every_flag_of_a_page_exists(page: str) -> None:
    known = _known_flags()
    code = [*pages.spans(page), *(command.text for command in pages.commands(page) if not command.is_python)]
    used = {found for text in code for found in re.findall(r"(?<![\w-])--[a-z][\w.-]*", text)}
    assert {flag for flag in used if flag not in known} == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_knob_that_a_page_names_exists(page: str) -> None:
    stages = "prompts|rendering|scoring|filtering|dataset|training|evaluation|runner"
    named = {span for span in pages.spans(page) if re.fullmatch(rf"({stages})(\.[a-z][\w-]*)+( \w+)?", span)}
    paths = {flag[2:].replace("-", "_") for flag in flags_of(PipelineConfig)}
    known = paths | {path.rpartition(".")[0] for path in paths}
    assert {span for span in named if span.split()[0].replace("-", "_") not in known} == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_module_and_file_that_a_page_names_exists(page: str) -> None:
    code = [*pages.spans(page), *(command.text for command in pages.commands(page))]
    modules = {found for text in code for found in re.findall(r"python -m ([\w.]+)", text)}
    assert {name for name in modules if importlib.util.find_spec(name) is None} == set()
    places = {
        found
        for span in pages.spans(page)
        for found in re.findall(r"(?<![\w/])(?:tests|data|ip2p|flows|docs)/[\w./]*", span)
    }
    assert {name for name in places if not (ROOT / name).exists()} == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    for link in pages.links(page):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (PAGES[page].parent / path).resolve() if path else PAGES[page]
        assert target.exists(), link
        assert not anchor or anchor in pages.anchors(target), link


@pytest.mark.parametrize("page", PAGES)
def test_what_is_typed_stands_between_fences_of_a_known_language(page: str) -> None:
    assert {block.language for block in pages.blocks(page)} <= set(pages.LANGUAGES)
    lines = pages.prose(page).splitlines()
    assert [line for line in lines if line.startswith("    ") or re.match(r"(\$ |ip2p |python |pip )", line)] == []
    assert [line for line in lines if line.count("`") % 2] == []  # a span that is broken is not looked at


def test_every_page_of_the_docs_is_linked_from_the_readme() -> None:
    linked = {link.partition("#")[0] for link in pages.links("README.md")}
    assert {page for page in PAGES if page != "README.md"} <= linked
