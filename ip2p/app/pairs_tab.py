"""The tab *Pairs*: the pairs of a run, page by page, filtered, and each of them large with all that is known of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ip2p.app.browsing import (
    WAY_OUT,
    Pairs,
    count_choices,
    describe,
    find,
    open_pairs,
    read_sides,
    side_by_side,
    write_once,
)
from ip2p.app.mistakes import friendly
from ip2p.app.tables import advise, find_runs
from ip2p.console import one_line
from ip2p.scoring import SCORE_COLUMNS, SCORES

PER_PAGE = 24
Update = dict[str, Any]
"""New properties of a component."""


@dataclass(frozen=True, slots=True)
class View:
    """The pairs that match the filters, and which page of them is shown."""

    pairs: Pairs
    rows: Sequence[int]
    page: int = 1

    @property
    def num_pages(self) -> int:
        """The number of pages, at least one."""
        return max(1, -(-len(self.rows) // PER_PAGE))

    @property
    def on_page(self) -> Sequence[int]:
        """The numbers of the rows on the page."""
        return self.rows[(self.page - 1) * PER_PAGE : self.page * PER_PAGE]


Shown = tuple[View | None, str, Sequence[tuple[str, str]], Update, Update]
"""The view, its line of text, the cards, and whether there is a previous and a next page."""


def pairs_tab(page: gr.Blocks, calls: PairsCalls) -> None:
    """Lays the tab out and connects it."""
    source = gr.Dropdown(
        [], label="Run folder, folder of parquet files, or hub id", allow_custom_value=True, elem_id="source"
    )
    with gr.Row():
        kinds = gr.Dropdown([], label="Edit types", multiselect=True, elem_id="kinds")
        verdicts = gr.Dropdown([], label="Verdicts", multiselect=True, elem_id="verdicts")
        words = gr.Textbox("", label="Words", placeholder="any", max_lines=1, elem_id="words")
        score = gr.Dropdown([], label="Score", elem_id="score")
        low = gr.Number(None, label="at least", min_width=100, elem_id="low")
        high = gr.Number(None, label="at most", min_width=100, elem_id="high")
    with gr.Row(elem_id="turn"):
        previous = gr.Button("Previous", interactive=False, min_width=100, elem_id="previous")
        count = gr.Markdown(elem_id="found")
        following = gr.Button("Next", interactive=False, min_width=100, elem_id="next")
    gallery = gr.Gallery(
        show_label=False,
        columns=3,
        fit_columns=False,
        object_fit="contain",
        height="auto",
        allow_preview=False,
        buttons=[],
        elem_id="pairs",
    )
    with gr.Column(visible=False, elem_id="pair") as large:
        close = gr.Button("Close", size="sm", elem_id="close")
        with gr.Row():
            original, edited = (
                gr.Image(label=label, interactive=False, format="png", buttons=["download", "fullscreen"], elem_id=name)
                for label, name in (("Original", "original"), ("Edited", "edited"))
            )
        facts = gr.HTML(elem_id="facts")

    view = gr.State(None)
    outputs: list[Any] = [view, count, gallery, previous, following]
    filters: list[Any] = [kinds, verdicts, score, low, high, words]
    page.load(calls.list_sources, None, source, show_progress="hidden").then(
        calls.open_source, source, [*filters, *outputs]
    )
    source.input(calls.open_source, source, [*filters, *outputs])
    gr.on(
        [*(field.input for field in (kinds, verdicts, score)), *(field.change for field in (low, high, words))],
        friendly(calls.show),
        [view, *filters],
        outputs,
        trigger_mode="always_last",
        show_progress="hidden",
    )
    previous.click(friendly(calls.previous_page), view, outputs, show_progress="hidden")
    following.click(friendly(calls.next_page), view, outputs, show_progress="hidden")
    gallery.select(friendly(calls.show_pair), view, [large, original, edited, facts], show_progress="hidden")
    close.click(calls.close_pair, None, [large, gallery], show_progress="hidden")


@dataclass(frozen=True)
class PairsCalls:
    """The callbacks, over the runs below `root`."""

    root: Path
    folder: Path
    """Where cards are written."""

    def list_sources(self) -> Update:
        """Offers the runs on load, and chooses the newest one that has pairs."""
        runs = find_runs(self.root)
        with_pairs = [run for run in runs if any((run / name).is_dir() for name in ("pairs", "dataset"))]
        return gr.update(choices=[str(run) for run in runs], value=str(next(iter(with_pairs or runs), "")) or None)

    def open_source(self, source: str | None) -> tuple[Any, ...]:
        """Opens pairs, fills the filters with what can be chosen among them, and shows the first page."""
        try:
            if not source:
                raise ValueError(advise(self.root) or f"no run is chosen. {WAY_OUT}")
            pairs = open_pairs(source)
        except (ValueError, RuntimeError, OSError) as error:
            empty = gr.update(choices=[], value=None)
            return empty, empty, empty, None, None, "", *self._show(None, one_line(error))
        scores = [(SCORES[SCORE_COLUMNS[name]].title, name) for name in pairs.scores]
        return (
            gr.update(choices=count_choices(pairs.values.get("edit_type", [])), value=[]),
            gr.update(choices=count_choices(pairs.verdicts), value=[]),
            gr.update(choices=scores, value=None),
            None,
            None,
            "",
            *self._show(View(pairs, range(len(pairs)))),
        )

    def show(
        self,
        view: View | None,
        edit_types: Sequence[str] | None,
        verdicts: Sequence[str] | None,
        score: str | None,
        low: float | None,
        high: float | None,
        words: str | None,
    ) -> Shown:
        """Shows the first page of the pairs that match the filters."""
        if view is None:
            return self._show(None)
        rows = find(view.pairs, edit_types=edit_types, verdicts=verdicts, score=score, low=low, high=high, words=words)
        return self._show(View(view.pairs, rows))

    def previous_page(self, view: View | None) -> Shown:
        """Shows the page before."""
        return self._turn(view, -1)

    def next_page(self, view: View | None) -> Shown:
        """Shows the page after."""
        return self._turn(view, 1)

    def _turn(self, view: View | None, step: int) -> Shown:
        return self._show(view and replace(view, page=min(max(1, view.page + step), view.num_pages)))

    def _show(self, view: View | None, message: str = "") -> Shown:
        if view is None:
            return None, message, [], gr.update(interactive=False), gr.update(interactive=False)
        cards = [side_by_side(view.pairs, row) for row in view.on_page]
        return (
            view,
            f"{len(view.rows)} of {len(view.pairs)} pairs · page {view.page} of {view.num_pages}",
            [(write_once(self.folder, picture), caption) for picture, caption in cards],
            gr.update(interactive=view.page > 1),
            gr.update(interactive=view.page < view.num_pages),
        )

    def show_pair(self, view: View, event: gr.SelectData) -> tuple[Update, str, str, str]:
        """Shows a pair of the page in its true size, with its texts, verdict and scores."""
        number = view.on_page[event.index]
        original, edited = (write_once(self.folder, picture) for picture in read_sides(view.pairs, number))
        facts = "".join(
            f"<dt>{escape(title)}</dt><dd>{escape(text)}</dd>" for title, text in describe(view.pairs, number).items()
        )
        return gr.update(visible=True), original, edited, f"<dl>{facts}</dl>"

    def close_pair(self) -> tuple[Update, Update]:
        """Hides the large pair, and lets its card be chosen again."""
        return gr.update(visible=False), gr.update(selected_index=None)
