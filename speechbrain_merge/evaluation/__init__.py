"""Error rates, forgetting, significance, transcripts, and combined systems.

This room knows transcripts and counts, and nothing of the models that wrote
them or of their weights.
"""

from speechbrain_merge.evaluation.bert_score import BERTScore
from speechbrain_merge.evaluation.best_reference import BestReferenceStats
from speechbrain_merge.evaluation.bootstrap import (
    BootstrapComparison,
    Interval,
    confidence_interval,
    macro_bootstrap,
    paired_bootstrap,
)
from speechbrain_merge.evaluation.buckets import (
    BUCKET_EDGES,
    by_bucket,
    summarize_scores,
)
from speechbrain_merge.evaluation.continual import (
    CONTINUAL_METRICS,
    average_metrics,
    continual_metrics,
    rate_matrix,
)
from speechbrain_merge.evaluation.counts import ErrorCounts, counts_of, rate_of
from speechbrain_merge.evaluation.domains import (
    macro_average,
    normalised_gain,
    summarize_domains,
    worst_domain,
)
from speechbrain_merge.evaluation.entailment import Entailment
from speechbrain_merge.evaluation.error_changes import (
    ErrorChange,
    changed_utterance_rows,
    changed_utterances,
    error_change_rows,
    error_changes,
)
from speechbrain_merge.evaluation.error_rates import (
    UtteranceScore,
    count_errors,
    from_tracker,
    pair_scores,
    score_utterances,
    total,
)
from speechbrain_merge.evaluation.forgetting import (
    backward_transfer,
    forgetting,
    forward_transfer,
)
from speechbrain_merge.evaluation.hallucination import (
    hallucinations,
    longest_loop,
)
from speechbrain_merge.evaluation.hypothesis_fusion import (
    ensemble_log_probs,
    mean_confidence,
    oracle,
    select_by_confidence,
)
from speechbrain_merge.evaluation.measured import measured
from speechbrain_merge.evaluation.records import read_scores, write_scores
from speechbrain_merge.evaluation.semantic import (
    SemanticScore,
    phonetic_similarity,
)
from speechbrain_merge.evaluation.sign_flips import sign_flip_p_value
from speechbrain_merge.evaluation.significance import (
    MatchedPairs,
    holm,
    mapsswe,
)
from speechbrain_merge.evaluation.text import TextNormalizer
