"""Who may import whom, what stays free of torch, and the house rules that a program can check."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = (
    ("ip2p.records", "ip2p.console", "ip2p.proxies", "ip2p.plugins"),
    ("ip2p.config", "ip2p.store"),
    ("ip2p.presets", "ip2p.images", "ip2p.comparing", "ip2p.hub", "ip2p.server_client", "ip2p.sources"),
    ("ip2p.models", "ip2p.chat_client", "ip2p.images_client"),
    ("ip2p.prompts", "ip2p.picture_judge", "ip2p.p2p", "ip2p.scoring", "ip2p.editing"),
    ("ip2p.filtering", "ip2p.training"),
    ("ip2p.rendering",),
    ("ip2p.dataset", "ip2p.evaluation"),
    ("ip2p.report", "ip2p.app", "ip2p.plan"),
    ("ip2p.ablation",),
    ("ip2p.uses",),
    ("ip2p.explain",),
    ("ip2p.doctor",),
    ("ip2p.shapes", "flows"),
    ("ip2p.cli",),
)
"""From the ground up: a module imports from its own package and from the layers below it."""
PARTS = tuple(part for layer in LAYERS for part in layer)
LOADERS = ("ip2p.models.loading", "ip2p.models.pipelines", "ip2p.models.components")
"""What loads a model; maths takes models as arguments."""
STAGES = ("prompts", "rendering", "scoring", "filtering", "dataset", "training", "editing", "evaluation")
SPEAKING = ("ip2p.cli", "ip2p.console", "ip2p.shapes.train")
"""What may print: the command, its terminal and the recipe of the base models; `__main__` modules too."""
TORCH_FREE = (
    "ip2p.records",
    "ip2p.config",
    "ip2p.presets",
    "ip2p.store",
    "ip2p.comparing",
    "ip2p.scoring",
    "ip2p.filtering",
    "ip2p.dataset.schema",
    "ip2p.report",
    "ip2p.cli",
)
NAMING_BASES = ("ip2p.models", "ip2p.shapes.train", "ip2p.config")
"""What may name a base's classes, layers and parts; the config does in the help of its flags."""
BASE_WORDS = re.compile(r"(?i)\b\w*(?:unet|conv_in|text_encoder_2|tokenizer_2|StableDiffusion(?!Safety)|is_xl)\w*")
ON_PURPOSE = {
    "learning_rate_conv_in": ("ip2p.presets.embedded", "ip2p.training.optimizer"),
    "unet": ("ip2p.training.checkpoint",),
    "unet_ema": ("ip2p.training.checkpoint",),
}
"""A field of the config and the folders of a checkpoint, with the modules that name them."""
HEAVY = {"torch", "diffusers", "transformers", "datasets", "prefect"}
SAYING_NOTHING = {"utils", "util", "helpers", "helper", "common", "base", "manager", "misc"}
LONGEST = 60
TRAINING_LOOP = "ip2p.training.loop.train"
# Assembled, so that this file does not break its own rule.
REGISTRY_HOSTS = re.compile(r"files\.python" + r"hosted|\bpy" + r"pi\.org|registry\.npm" + r"js|deb\.deb" + r"ian\.org")
MACHINE_PATHS = re.compile(r"(?<![\w.:/-])/(?:work|root|home/\w+|Users/\w+)/")
BINARY = {".parquet", ".safetensors", ".png", ".jpg", ".webp", ".npz"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Import:
    """One imported name: where it stands, what it names and whether it waits inside a function."""

    where: str
    module: str
    name: str
    lazy: bool

    @property
    def target(self) -> str:
        """Dotted path of what is imported."""
        return f"{self.module}.{self.name}" if self.name else self.module

    def is_of(self, package: str) -> bool:
        """True where it imports the package, something in it or something below it."""
        return f"{self.target}.".startswith(f"{package}.")


def module_name(path: Path) -> str:
    """`ip2p/store.py` is `ip2p.store`, `ip2p/prompts/__init__.py` is `ip2p.prompts`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@lru_cache
def trees(package: str) -> dict[str, ast.Module]:
    """Syntax trees of a package, by module name."""
    return {module_name(path): ast.parse(path.read_text()) for path in sorted((ROOT / package).rglob("*.py"))}


def functions(tree: ast.AST) -> Iterator[Function]:
    """All functions of a tree, nested ones too."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def is_package(module: str) -> bool:
    """True for a folder."""
    return (ROOT / module.replace(".", "/")).is_dir()


def imported_module(node: ast.ImportFrom, module: str) -> str:
    """What `from … import` names, with its dots resolved."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    parents = parts[: len(parts) - node.level + is_package(module)]
    return ".".join([*parents, *filter(None, [node.module])])


def imports(package: str) -> Iterator[Import]:
    """Every import of a package, those inside functions too."""
    for module, tree in trees(package).items():
        inside = {id(node) for function in functions(tree) for node in ast.walk(function)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from (Import(module, alias.name, "", id(node) in inside) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                source = imported_module(node, module)
                yield from (Import(module, source, alias.name, id(node) in inside) for alias in node.names)


def part_of(module: str) -> str:
    """The entry of `LAYERS` that a dotted path lies in: `ip2p.<package>` or `flows`; empty for anything else."""
    parts = module.split(".")
    return "flows" if parts[0] == "flows" else ".".join(parts[:2]) if parts[0] == "ip2p" and len(parts) > 1 else ""


def floor_of(part: str) -> int:
    """The number of the layer that holds a part."""
    return next(number for number, layer in enumerate(LAYERS) if part in layer)


def length(function: Function) -> int:
    """Lines of the body without the docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


@lru_cache
def lengths() -> dict[str, int]:
    """Lines of every function of the two packages by name and place, the training loop aside."""
    return {
        f"{module}.{function.name}:{function.lineno}": length(function)
        for package in ("ip2p", "flows")
        for module, tree in trees(package).items()
        for function in functions(tree)
        if f"{module}.{function.name}" != TRAINING_LOOP
    }


@lru_cache
def project_files() -> tuple[Path, ...]:
    """What git tracks or would."""
    command = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return tuple(path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file())


def test_every_module_stands_in_one_layer() -> None:
    parts = {part_of(module) for package in ("ip2p", "flows") for module in trees(package) if module != "ip2p"}
    assert sorted(parts) == sorted(PARTS)


def test_every_stage_is_a_section_of_the_config_or_edits() -> None:
    from ip2p.config import PipelineConfig

    sections = {field.name for field in fields(PipelineConfig)}
    assert [stage for stage in STAGES if f"ip2p.{stage}" not in trees("ip2p")] == []
    assert set(STAGES) - sections == {"editing"}


def test_only_flows_imports_prefect() -> None:
    assert [found for found in imports("ip2p") if found.is_of("prefect") or found.is_of("prefect_ray")] == []
    assert any(found.is_of("prefect") for found in imports("flows"))


def test_only_the_command_imports_flows_and_only_inside_a_function() -> None:
    found = [entry for entry in imports("ip2p") if entry.is_of("flows")]
    assert [entry for entry in found if not (entry.where.startswith("ip2p.cli") and entry.lazy)] == []
    assert found


def test_modules_import_only_their_own_package_and_lower_layers() -> None:
    wrong = []
    for entry in (*imports("ip2p"), *imports("flows")):
        here, there = part_of(entry.where), part_of(entry.target)
        if here and there in PARTS and here != there and floor_of(there) >= floor_of(here):
            wrong.append(entry)
    assert [entry for entry in wrong if not (part_of(entry.target) == "flows" and entry.lazy)] == []


def test_nothing_but_the_command_imports_the_shapes() -> None:
    found = [entry for entry in imports("ip2p") if entry.is_of("ip2p.shapes")]
    assert [entry for entry in found if part_of(entry.where) not in ("ip2p.shapes", "ip2p.cli")] == []


def test_no_module_takes_a_private_name_of_another_package() -> None:
    def is_private(entry: Import) -> bool:
        return entry.is_of("ip2p") and re.search(r"\._(?!_)", entry.target) is not None

    def is_foreign(entry: Import) -> bool:
        own = entry.where if is_package(entry.where) else entry.where.rpartition(".")[0]
        return entry.module != own and entry.module.rpartition(".")[0] != own

    assert [entry for entry in (*imports("ip2p"), *imports("flows")) if is_private(entry) and is_foreign(entry)] == []


def test_maths_loads_no_model() -> None:
    editing = ("apply", "captioned", "flowedit", "sdedit")
    maths = ("ip2p.p2p", "ip2p.evaluation.metrics", *(f"ip2p.editing.{name}" for name in editing))
    found = [entry for entry in imports("ip2p") if f"{entry.where}.".startswith(tuple(f"{name}." for name in maths))]
    assert [entry for entry in found for loader in LOADERS if entry.is_of(loader)] == []
    assert found


def words_of(tree: ast.AST) -> Iterator[str]:
    """Every name and every string of a tree."""
    for node in ast.walk(tree):
        for value in vars(node).values():
            if isinstance(value, str):
                yield value


def test_only_the_models_name_a_base() -> None:
    found = [
        f"{module}: {word}"
        for package in ("ip2p", "flows")
        for module, tree in trees(package).items()
        if not module.startswith(NAMING_BASES)
        for text in words_of(tree)
        for word in BASE_WORDS.findall(text)
        if module not in ON_PURPOSE.get(word, ())
    ]
    assert found == []
    assert any(BASE_WORDS.search(text) for text in words_of(trees("ip2p")["ip2p.models.stable_diffusion_xl"]))


@pytest.mark.parametrize("module", TORCH_FREE)
def test_this_module_imports_neither_torch_nor_another_heavy_library(module: str) -> None:
    check = f"import sys, {module}; print(*sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_every_folder_of_modules_is_a_package() -> None:
    folders = {path.parent for package in ("ip2p", "flows") for path in (ROOT / package).rglob("*.py")}
    assert [str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_every_module_says_what_it_decides() -> None:
    modules = {**trees("ip2p"), **trees("flows")}
    assert [name for name, tree in modules.items() if not ast.get_docstring(tree)] == []


def test_no_module_has_a_name_that_says_nothing() -> None:
    names = {name for package in ("ip2p", "flows", "tests") for name in trees(package)}
    assert [name for name in names if set(name.split(".")) & SAYING_NOTHING] == []


def test_no_function_is_longer_than_sixty_lines_but_the_training_loop() -> None:
    assert {where: lines for where, lines in lengths().items() if lines > LONGEST} == {}


def test_functions_are_short() -> None:
    lines = sorted(lengths().values())
    assert statistics.median(lines) <= 8
    assert lines[int(len(lines) * 0.9)] <= 30


def test_library_code_does_not_print() -> None:
    found = [
        f"{module}:{node.lineno}"
        for module, tree in trees("ip2p").items()
        if not module.startswith(SPEAKING) and not module.endswith("__main__")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert found == []


def test_no_file_names_a_registry_host_or_a_path_of_one_machine() -> None:
    found = []
    for path in project_files():
        if path.suffix in BINARY:
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        found += [f"{path}: {match[0]}" for rule in (REGISTRY_HOSTS, MACHINE_PATHS) for match in rule.finditer(text)]
    assert found == []


def test_the_lock_pins_by_hash_and_names_no_index() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    assert not re.search(r"^\s*-(?!-hash)", text, re.MULTILINE)
    entries = re.findall(r"^(\S+)==(\S+)(.*(?:\n    --hash=sha256:[0-9a-f]{64}.*)*)", text, re.MULTILINE)
    assert len(entries) > 100
    assert [name for name, _, rest in entries if "--hash=" not in rest] == []
    assert {("torch", "2.10.0"), ("torchvision", "0.25.0")} <= {(name, version) for name, version, _ in entries}
