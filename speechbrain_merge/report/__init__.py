"""What a person looks at: tables and pictures of results."""

from speechbrain_merge.report.plots import plot_domains, plot_merge_curve
from speechbrain_merge.report.tables import (
    bucket_rows,
    markdown_table,
    results_rows,
    text_table,
)
