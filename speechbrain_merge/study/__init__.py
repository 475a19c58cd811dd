"""Studies: graphs of models that are trained, merged, tested and compared.

Authors
 * The speechbrain_merge authors 2026
"""

from speechbrain_merge.study.study import Study
