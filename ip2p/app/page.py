"""Builds the page: four tabs over the editor, the pairs, the prompt stage and the runs, for this machine alone.

Each tab is a function that lays it out and connects it to its callbacks.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from ip2p.app.edit_tab import EditCalls, edit_tab
from ip2p.app.mistakes import friendly
from ip2p.app.pairs_tab import PairsCalls, pairs_tab
from ip2p.app.tables import RUN_COLUMNS, TRIPLET_COLUMNS, advise, describe_runs, find_configs, find_runs, write_rows
from ip2p.proxies import reach_this_machine_directly

MOST_UPLOADED = "20mb"
WAITING = 16
"""Edits that may wait in the queue; further ones are refused."""
FONTS = (gr.themes.Font("system-ui"), gr.themes.Font("sans-serif"))
MONOSPACE = (gr.themes.Font("ui-monospace"), gr.themes.Font("monospace"))
THEME = gr.themes.Base(font=FONTS, font_mono=MONOSPACE)
"""Fonts of the system, so that none is fetched from elsewhere."""
HERE = Path(__file__).parent


def build_page(root: Path, model: str | None = None, device: str = "auto") -> gr.Blocks:
    """Builds the page over the runs below `root`; `model` is the editor selected on start."""
    folder = Path(tempfile.mkdtemp(prefix="ip2p-page-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    page = gr.Blocks(title="ip2p", analytics_enabled=False)
    with page:
        gr.Markdown("# ip2p\nEdit pictures, look through the pairs that an editor learns from, compare runs.")
        gr.Markdown(partial(advise, root))
        with gr.Tab("Edit"):
            edit_tab(page, EditCalls(root, model, device, folder))
        with gr.Tab("Pairs"):
            pairs_tab(page, PairsCalls(root, folder))
        with gr.Tab("Prompts"):
            _prompts_tab(root)
        with gr.Tab("Runs"):
            _runs_tab(root)
    return page


def serve(page: gr.Blocks, root: Path, *, port: int | None = None, share: bool = False, wait: bool = True) -> str:
    """Starts the page on 127.0.0.1 and returns its address; blocks while `wait`."""
    reach_this_machine_directly()  # gradio asks the page whether it is up
    _, address, _ = page.queue(max_size=WAITING, default_concurrency_limit=1).launch(
        server_name="127.0.0.1",
        server_port=port,
        share=share,
        max_file_size=MOST_UPLOADED,
        allowed_paths=[str(path / "report") for path in find_runs(root)],
        prevent_thread_lock=not wait,
        show_error=True,
        quiet=True,
        theme=THEME,
        css_paths=HERE / "page.css",
        head=f"<script>{(HERE / 'page.js').read_text(encoding='utf-8')}</script>",
        footer_links=[],
    )
    return str(address)


def _prompts_tab(root: Path) -> None:
    configs = find_configs(root)
    with gr.Row():
        caption = gr.Textbox(label="Caption", placeholder="a photo of a horse in a field", scale=4, elem_id="caption")
        config = gr.Dropdown(
            configs, value=configs[0], label="Run or preset", allow_custom_value=True, scale=2, elem_id="config"
        )
        number = gr.Slider(1, 20, 5, step=1, label="Triplets", elem_id="triplets")
        write = gr.Button("Write", variant="primary", elem_id="write")
    table = gr.Dataframe(headers=list(TRIPLET_COLUMNS), interactive=False, wrap=True, elem_id="written")
    gr.on([write.click, caption.submit], friendly(write_rows), [config, caption, number], table)


def _runs_tab(root: Path) -> None:
    def rows() -> list[list[str]]:
        return describe_runs(find_runs(root))

    gr.Markdown(f"Runs below `{root}`, newest first.")
    kinds: Any = ["str"] * (len(RUN_COLUMNS) - 1) + ["markdown"]
    table = gr.Dataframe(rows, headers=list(RUN_COLUMNS), datatype=kinds, interactive=False, elem_id="runs")
    gr.Button("Refresh").click(rows, None, table)
