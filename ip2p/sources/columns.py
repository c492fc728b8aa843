"""The column names of other people's datasets, and how a user maps them to ours."""

from __future__ import annotations

from collections.abc import Collection, Mapping

SIDES = ("original_image", "edited_image")
NEEDED = ("original_image", "edit_prompt", "edited_image")
OPTIONAL = ("original_prompt", "edited_prompt")
FURTHER_PICTURES = ("reference_image_2", "mask_image")
"""What a pair may have beside its two pictures: a second reference, and a mask, white where the edit is."""
PICTURES = (*SIDES, *FURTHER_PICTURES)
OURS = (*NEEDED, *OPTIONAL, "edit_type", "group", *FURTHER_PICTURES)
"""Our columns of a pair; `group` identifies the original picture, so that each lies in one split."""


def _schema(original_image: str, edit_prompt: str, edited_image: str, **further: str) -> dict[str, str]:
    return dict(zip(NEEDED, (original_image, edit_prompt, edited_image), strict=True)) | further


KNOWN_SCHEMAS = {
    "timbrooks/instructpix2pix-clip-filtered": {name: name for name in (*NEEDED, *OPTIONAL)},
    "fusing/instructpix2pix-1000-samples": _schema("input_image", "edit_prompt", "edited_image"),
    "osunlp/MagicBrush": _schema("source_img", "instruction", "target_img", group="img_id", mask_image="mask_img"),
    "BleachNick/UltraEdit": _schema(
        "source_image", "edit_prompt", "edited_image", original_prompt="source_caption", edited_prompt="target_caption"
    ),
    "TIGER-Lab/OmniEdit-Filtered-1.2M": _schema(
        "src_img", "edited_prompt_list", "edited_img", edit_type="task", group="omni_edit_id"
    ),
    "UCSC-VLAA/HQ-Edit": _schema(
        "input_image", "edit", "output_image", original_prompt="input", edited_prompt="output"
    ),
    "instruction-tuning-sd/cartoonization": _schema("original_image", "edit_prompt", "cartoonized_image"),
    "BryanW/HumanEdit": _schema(
        "INPUT_IMG",
        "EDITING_INSTRUCTION",
        "OUTPUT_IMG",
        original_prompt="INPUT_CAPTION_BY_LLAMA",
        edited_prompt="OUTPUT_CAPTION_BY_LLAMA",
        edit_type="EDITING_TYPE",
        group="IMAGE_ID",
        mask_image="MASK_IMG",
    ),
    "iitolstykh/NHR-Edit": _schema("source", "edit_instruction", "edited", edit_type="category"),
    "xiaotanhua/UnicEdit-10M": _schema("src_image", "prompt_en", "edit_image", edit_type="edit_subtask", group="key"),
    "InternVL-U/ScaleEdit-12M": _schema("source_image", "edit_instruction", "edited_image", edit_type="edit_task"),
    "apple/pico-banana-400k": _schema("local_input_image", "text", "output_image", edit_type="edit_type"),
    "OPPOer/X2Edit-Dataset": _schema("1.0", "instruction", "2", edit_type="task"),
    "OPPOer/X2Edit-Dataset, unnumbered originals": _schema("1", "instruction", "2", edit_type="task"),
    "kohya-ss/musubi-tuner": _schema("control_path", "caption", "image_path", reference_image_2="control_path_1"),
    "kohya-ss/musubi-tuner, numbered": _schema(
        "control_path_0", "caption", "image_path", reference_image_2="control_path_1"
    ),
    "modelscope/DiffSynth-Studio": _schema("edit_image", "prompt", "image"),
    "modelscope/DiffSynth-Studio, Kontext": _schema("kontext_images", "prompt", "image"),
}
"""Maps our column names to those of datasets of pairs on the hub, and of the tables that trainers read."""

MAGICBRUSH_TURN = {"turn": "turn_index"}
"""MagicBrush's further column: the edits of a group follow each other."""
EMU_EDIT = {
    "original_image": "image",
    "edit_prompt": "instruction",
    "original_prompt": "input_caption",
    "edited_prompt": "output_caption",
    "edit_type": "task",
}
"""Columns of Emu Edit's test set, which has no edited pictures."""

TRIPLET_ALIASES = {
    "original_prompt": ("original_prompt", "input", "caption"),
    "edit_prompt": ("edit_prompt", "edit"),
    "edited_prompt": ("edited_prompt", "output"),
}
"""Names of the three texts in files of triplets, ours first, then those of the original software."""
CAPTION_COLUMNS = ("caption", "text", "TEXT", "prompt", "original_prompt")
"""Columns tried in this order if none is named."""
PICTURE_COLUMNS = ("image", "picture", "original_image", "source_image", "img", "jpg", "png", "file_name", "path")
"""The same for columns of pictures or of their files."""


def guess_columns(names: Collection[str]) -> dict[str, str]:
    """Maps our column names to a table's by the known schema that fits. ValueError if none does."""
    for mapping in KNOWN_SCHEMAS.values():
        if all(mapping[column] in names for column in NEEDED):
            return {ours: theirs for ours, theirs in mapping.items() if theirs in names}
    raise ValueError(
        f"no known schema fits the columns {', '.join(sorted(names)) or '(none)'}. "
        f"Name the columns that hold {', '.join(NEEDED)}."
    )


def fitting(
    columns: Mapping[str, str], names: Collection[str], optional: Mapping[str, str] | None = None
) -> dict[str, str] | None:
    """Returns our names to a benchmark's columns if a table has all of them; with the optional ones that it has.

    Further pictures are always optional.
    """
    if not all(theirs in names for ours, theirs in columns.items() if ours not in FURTHER_PICTURES):
        return None
    mapping = {**columns, **(optional or {})}
    return {ours: theirs for ours, theirs in mapping.items() if theirs in names}


def map_columns(names: Collection[str], mapping: Mapping[str, str] | None, *, where: str) -> dict[str, str]:
    """Maps our names to a table's: by the user's mapping or a known schema, and further columns that have our names.

    ValueError if a column of the mapping is missing or no known schema fits.
    """
    columns = dict(guess_columns(names) if mapping is None else mapping)
    check_columns(columns, names, where=where)
    free = [name for name in OURS if name in names and name not in columns and name not in columns.values()]
    return columns | {name: name for name in free}


def check_columns(columns: Mapping[str, str], names: Collection[str], *, where: str) -> None:
    """Raises a ValueError that names the missing and the present columns."""
    missing = [f"{theirs} (for {ours})" for ours, theirs in columns.items() if theirs not in names]
    if missing:
        raise ValueError(f"{where} has no column {', '.join(missing)}; it has {', '.join(sorted(names)) or '(none)'}.")


def find_column(ours: str, names: Collection[str]) -> str | None:
    """Finds one of our columns in a table: by our name, else by the first known one that the table has."""
    others = [schema[ours] for schema in KNOWN_SCHEMAS.values() if ours in schema]
    return next((name for name in (ours, *others) if name in names), None)


def image_columns(names: Collection[str], *, where: str) -> tuple[str, str]:
    """Finds the columns of the original and the edited image under any known name. ValueError if one is missing."""
    original, edited = (find_column(side, names) for side in SIDES)
    if original is None or edited is None:
        have = ", ".join(names) or "none"
        raise ValueError(f"{where} has no columns original_image and edited_image; its columns are: {have}.")
    return original, edited
