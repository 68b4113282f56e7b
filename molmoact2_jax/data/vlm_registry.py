"""The multimodal sets of the paper: one row per set, the weight of each task family, and which of them are on disk.

Sources: the paper's Table 1 and section 2.1 as `training.md` 4.2 and 4.3 record them; names and size factors of the
Molmo2 half are those of its published mixture. A set lies in a directory of its name (`vlm`, `records`).
"""

from __future__ import annotations

import dataclasses
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from molmoact2_jax.data import mixture, quarantine, vlm
from molmoact2_jax.data.example import Encoding, Weighting

logger = logging.getLogger(__name__)
QUARANTINE = "quarantine.jsonl"

POINTING = Weighting(0.2, root_length=False, root_conversations=False)
CAPTIONS = Weighting(0.1, root_length=False, root_conversations=False)


@dataclasses.dataclass(frozen=True)
class Row:
    """One set.

    Attributes:
      name: its directory.
      group: task family, a key of the mixtures.
      factor: of the square-root size (`mixture.root_size`), None for the size itself.
      rate: further multiplier inside the family.
      weighting: loss weights.
      high_res: share of examples cut into many tiles.
    """

    name: str
    group: str
    factor: float | None = None
    rate: float = 1.0
    weighting: Weighting = dataclasses.field(default_factory=Weighting)
    high_res: float = 0.0


def _rows(group: str, names: str, **fields: object) -> tuple[Row, ...]:
    """Makes rows from words; `name:factor` gives a size factor, `name*rate` a rate."""
    rows = []
    for word in names.split():
        name, _, factor = word.partition(":")
        name, _, rate = name.partition("*")
        rows.append(Row(name, group, float(factor) if factor else None, float(rate or 1), **fields))  # type: ignore[arg-type]
    return tuple(rows)


MOLMO2 = (
    *_rows(
        "image_qa",
        "coco_2014_vqa_multi text_vqa okvqa chart_qa_weighted doc_qa info_qa ai2_diagram_v2_mix_transparent a_okvqa_mc "
        "a_okvqa_da science_qa_img tabwmp_da st_qa tally_qa mantis_instruct_llava_665k_multi_multi_only "
        "mantis_instruct_nlvr2_multi_only mantis_instruct_spot-the-diff_multi_only dv_qa:10000 figure_qa:10000 "
        "plot_qa:20000 cosyn_chart_exp cosyn_chemical_exp cosyn_diagram_exp cosyn_document cosyn_math_exp "
        "cosyn_music_exp cosyn_table_exp cosyn_multidoc_chart_exp cosyn_multidoc_chemical_exp "
        "cosyn_multidoc_diagram_exp cosyn_multidoc_doc_exp cosyn_multidoc_music_exp cosyn_multidoc_table_exp",
    ),
    *_rows(
        "video_qa",
        "tgif:60000 tvqa_with_sub:60000 paxion:60000 llava_video_mc_academic llava_video_oe_academic perception_test "
        "nextqa_mc news_video_qa_filtered how2qa sutd_trafficqa social_iq2 sportsqa_oe cinepile_with_sub clevrer funqa "
        "star intent_qa video_localized_narratives road_text_vqa countix_oe camerabench_qa motionbench_train "
        "moments_in_time_qa:60000 kinetics_qa:60000 charades_sta_all_qa coin_all_qa youcook2_all_qa activitynet_all_qa "
        "ego4d_all epic_kitchens_qa video_localized_narratives_caption qv_highlights vixmo_syn_video_capqa_v2 "
        "vixmo_syn_video_capqa_with_sub_v2",
    ),
    *_rows(
        "captions",
        "pixmo_ask_model_anything pixmo_cap:100000 pixmo_cap_qa_as_user_qa pixmo_multi_image_qa_multi_only_max5 "
        "molmo2_human_qa",
    ),
    *_rows("captions", "vixmo3_top_level_captions_min_3*1.5", weighting=CAPTIONS),
    *_rows(
        "image_pointing",
        "pixmo_multi_points:200000 pixmo_points_train pixmo_count_train pixmo_points_high_freq_train cosyn_point",
        weighting=POINTING,
        high_res=0.3,
    ),
    *_rows(
        "video_pointing",
        "vixmo_points_minmax_0_5*0.4:1 vixmo_points_minmax_6_25*0.3:1 vixmo_points_minmax_26_60*0.1:1 "
        "academic_points_clip_63s_2fps*0.2:1",
        weighting=POINTING,
    ),
    *_rows(
        "video_tracking",
        "mevis_track*0.4 ref_yt_vos_track*0.4 lv_vis_track*0.4 vicas_track*0.4:30000 revos_track*0.4 "
        "molmo2_video_track*0.4 burst_track*0.05 ref_davis17_track*0.05 yt_vis_track*0.05 moca_track*0.05 "
        "mevis_ground*0.2 lv_vis_ground*0.2 vicas_ground*0.2:30000 revos_ground*0.2 molmo2_video_track_ground*0.2 "
        "burst_ground*0.01 moca_ground*0.01 mevis_single_point_track*0.15 lv_vis_single_point_track*0.15 "
        "vicas_single_point_track*0.15:30000 revos_single_point_track*0.15 molmo2_video_single_point_track*0.15 "
        "webuav_single_point_track*0.2 got10k_single_point_track*0.2 vasttrack_single_point_track*0.2 "
        "trackingnet_single_point_track*0.2 burst_single_point_track*0.1 lvosv1_single_point_track*0.1 "
        "lvosv2_single_point_track*0.1 lasot_single_point_track*0.1 uwcot_single_point_track*0.1 "
        "webuot_single_point_track*0.1 latot_single_point_track*0.1 tnl2k_single_point_track*0.1 "
        "tnllt_single_point_track*0.1",
        weighting=POINTING,
    ),
)
ER = (
    *_rows(
        "er_image_qa",
        "sat robopoint_qa:250000 refspatial_choice:250000 refspatial_reasoning:250000 vst_p_single:200000 "
        "vsi_590k_image:200000",
    ),
    *_rows(
        "er_pointing",
        "robopoint_pointing:700000 er_pixmo_points:150000 refspatial_point:80000",
        weighting=POINTING,
        high_res=0.3,
    ),
    *_rows("er_detection", "robopoint_lvis:100000"),
    *_rows("er_video_qa", "sims_vsi:203000 vsi_590k_video:300000 robovqa:200000"),
    *_rows("er_multi_image", "sensenova_si:500000 vst_p_multi:200000"),
    *_rows("er_abstract", "clevr:50000 grid_3d:100000"),
)
NLP = _rows("nlp", "tulu4")
ROWS = (*MOLMO2, *ER, *NLP)

_GENERAL = {"image_qa": 0.25, "video_qa": 0.20, "image_pointing": 0.10, "video_pointing": 0.15, "video_tracking": 0.15,
            "captions": 0.15}  # fmt: skip
_EMBODIED = {"er_image_qa": 0.22, "er_pointing": 0.22, "er_detection": 0.02, "er_video_qa": 0.20,
             "er_multi_image": 0.18, "er_abstract": 0.08}  # fmt: skip
_TEXT = 0.08


def blend(embodied: float) -> dict[str, float]:
    """Returns the rate of each family: text 0.08, of the rest `embodied` from ER sets and the others from Molmo2."""
    parts = ((embodied, _EMBODIED), (1 - embodied, _GENERAL))
    rates = {name: (1 - _TEXT) * p * rate / sum(of.values()) for p, of in parts if p for name, rate in of.items()}
    return rates | {"nlp": _TEXT}


# "general" is the tenth of pre- and post-training (Table 1), the others the stages of Molmo2-ER.
MIXTURES: Mapping[str, Mapping[str, float]] = {
    "general": blend(0.5),
    "er_stage1": blend(1.0),
    "er_stage2": blend(0.5),
}


class Opened(NamedTuple):
    """The sets found, their shares, the rates of their families, and the names of those that are not on disk."""

    datasets: tuple[vlm.VlmDataset, ...]
    shares: tuple[mixture.Share, ...]
    rates: Mapping[str, float]
    missing: tuple[str, ...]


def open_sets(
    root: str | os.PathLike[str],
    encoding: Encoding,
    name: str = "general",
    options: vlm.Options = vlm.Options(),  # noqa: B008 (frozen)
    rows: Sequence[Row] = ROWS,
) -> Opened:
    """Opens the sets of a mixture that lie under a directory; the others are returned and logged by name.

    Args:
      root: has a directory per set, and perhaps `quarantine.jsonl`, which names records of them that nobody draws.
      encoding: of the checkpoint.
      name: key of `MIXTURES`.
      options: of all sets; weights and high resolution are the rows'.
      rows: sets to look for, `ROWS` and one's own.

    Raises:
      ValueError: an unknown mixture, a set that cannot be read, or none on disk.
    """
    if name not in MIXTURES:
        raise ValueError(f"open_sets: mixture {name!r}, expected one of {sorted(MIXTURES)}.")
    rates, root = MIXTURES[name], pathlib.Path(root)
    wanted = [row for row in rows if row.group in rates]
    found = sorted((row for row in wanted if (root / row.name).is_dir()), key=lambda row: row.name)
    missing = tuple(sorted(row.name for row in wanted if row not in found))
    if not found:
        raise ValueError(f"{root}: none of the {len(wanted)} sets of mixture {name!r}, e.g. {wanted[0].name}. Add one.")
    if missing:
        logger.warning("%s: %d of %d sets are not on disk: %s", root, len(missing), len(wanted), ", ".join(missing))
    named = {row.name for row in rows}
    others = sorted(p.name for p in root.iterdir() if p.is_dir() and p.name[0] != "." and p.name not in named)
    if others:
        logger.warning("%s: no row names these directories, they are not read: %s", root, ", ".join(others))
    datasets, spoiled = [], quarantine.read(root / QUARANTINE)
    for row in found:
        left_out = {entry.episode for entry in spoiled if entry.dataset == row.name}
        own = dataclasses.replace(options, weighting=row.weighting, high_res=row.high_res)
        datasets.append(vlm.VlmDataset(vlm.Set.open(row.name, root / row.name), encoding, own, left_out))
    shares = tuple(mixture.Share(r.name, r.group, len(d), r.factor, r.rate) for r, d in zip(found, datasets))
    return Opened(tuple(datasets), shares, rates, missing)
