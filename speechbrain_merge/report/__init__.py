"""Tables, pictures and cards of results."""

from speechbrain_merge.report.barriers import plot_barriers
from speechbrain_merge.report.benchmark import benchmark_rows
from speechbrain_merge.report.card import merge_card
from speechbrain_merge.report.coefficient_sweep import (
    plot_coefficient_sweep,
    sweep_of,
)
from speechbrain_merge.report.forgetting_plot import plot_forgetting
from speechbrain_merge.report.landscape import plot_line, plot_plane
from speechbrain_merge.report.layer_distances import plot_layer_distances
from speechbrain_merge.report.learned_coefficients import (
    plot_learned_coefficients,
    read_coefficients,
    record_coefficients,
)
from speechbrain_merge.report.merge_curve import plot_merge_curve
from speechbrain_merge.report.pareto import pareto_front, plot_pareto
from speechbrain_merge.report.plots import plot_buckets, plot_domains
from speechbrain_merge.report.results import (
    check_results,
    load_results,
    save_results,
    summarize_results,
)
from speechbrain_merge.report.tables import (
    bucket_rows,
    markdown_table,
    results_rows,
    results_table,
    text_table,
)
from speechbrain_merge.report.transport_diagnostic import plot_alignment
