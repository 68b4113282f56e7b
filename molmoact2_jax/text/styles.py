"""Which kinds of multimodal questions announce themselves in the user's text."""

from __future__ import annotations

# Asked in plain words. Source: the style list of the released chat template.
# fmt: off
PLAIN = frozenset({
    "point_count", "pointing", "cosyn_point", "user_qa", "long_caption", "short_caption", "correction_qa",
    "text_sft", "demo", "video_long_caption", "video_short_caption", "video_transcript", "video_point",
    "video_point_count", "video_count", "video_count_point", "video_point_track_per_frame",
    "video_point_track_start_end", "video_point_track_all_frames", "video_single_point_track_start_end",
    "video_clip_caption_start_end", "video_clip_caption_start_end_in_seconds", "video_clip_transcript_start_end",
    "video_clip_transcript_start_end_in_seconds", "video_frame_caption_timestamp",
    "video_frame_caption_timestamp_in_seconds", "multi_image_pointing", "multi_image_counting",
    "multi_image_point_then_count", "multi_image_count_then_point", "a_okvqa_mc", "ai2_diagram_no_letter",
    "ai2_diagram", "science_qa", "multi_image_mc", "multi_image_mc_exp", "mantis_instruct_mc",
    "video_multiple_choice", "video_multiple_choice_count_without_pointing",
    "video_multiple_choice_multiple_correct", "video_multiple_choice_w_subtitle", "robot_action", "robot_depth",
    "robot_depth_action",
})
# fmt: on

RENAMED = {
    "eval_short_answer": "vqa2",
    "eval_multiple_choice": "a_okvqa_mc",
    "video_eval_short_answer": "video_short_answer",
    "video_eval_multiple_choice": "video_multiple_choice",
}


def prefix(style: str) -> str:
    """Returns what stands before a user's text: nothing for plain styles and "", else the style's training name."""
    style = RENAMED.get(style, style)
    if style.startswith("eval_multi_image_"):
        style = style.removeprefix("eval_")
    return "" if not style or style in PLAIN else f"{style}: "
