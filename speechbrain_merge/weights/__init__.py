"""Reading, writing, checking, folding and naming the parts of, model weights.

This is the ground floor: it knows nothing of merging.

Authors
 * The speechbrain_merge authors 2026
"""

from speechbrain_merge.weights.adapters import has_adapters
from speechbrain_merge.weights.changed_content import ChangedContent
from speechbrain_merge.weights.compatibility import (
    IncompatibleWeights,
    check_compatible,
    differing_integers,
)
from speechbrain_merge.weights.digest import digest, digest_with
from speechbrain_merge.weights.dtypes import (
    float_dtype,
    narrowed,
    promoted,
    stored_as,
    widened,
)
from speechbrain_merge.weights.folding import fold, plain_state
from speechbrain_merge.weights.head_count import (
    agreed_heads,
    attention_heads,
    common_heads,
    head_count,
    heads_at,
    heads_metadata,
)
from speechbrain_merge.weights.hub import local_source
from speechbrain_merge.weights.mapped import release
from speechbrain_merge.weights.mapping import (
    Entry,
    Weights,
    entry_of_pieces,
    joined,
    with_changed,
)
from speechbrain_merge.weights.module_settings import module_settings
from speechbrain_merge.weights.moved import places_of
from speechbrain_merge.weights.own_hash import (
    own_hash,
    verify_own_hash,
    write_with_hash,
)
from speechbrain_merge.weights.parts import Part, depth, is_norm, matches, part
from speechbrain_merge.weights.projections import (
    heads,
    join_projection,
    layout_of,
    projection_layout,
    split_projection,
)
from speechbrain_merge.weights.renaming import renamed
from speechbrain_merge.weights.source import open_weights
from speechbrain_merge.weights.tied import common_ties, find_ties, ties_to_text
from speechbrain_merge.weights.tree_hash import TreeHash, tree_hash
from speechbrain_merge.weights.unfolding import load_plain
from speechbrain_merge.weights.verification import hash_like, verify
from speechbrain_merge.weights.weight_norm import refold
from speechbrain_merge.weights.writer import (
    WeightWriter,
    tensor_bytes,
    write_weights,
)
