"""What similarity scores say of a candidate. `judge` needs no torch; `clip_scores`, which makes the scores, does."""

from ip2p.filtering.judge import judge, judge_table, thresholds_for

__all__ = ["judge", "judge_table", "thresholds_for"]
