"""Optimal-transport fusion: units of models from different starts, matched.

``symmetry_map`` says which axes of which tensors move together, ``align`` moves
them, ``OptimalTransport`` fuses what was aligned.
"""

from speechbrain_merge.methods.transport.activations import unit_activations
from speechbrain_merge.methods.transport.alignment import (
    Alignment,
    align,
    find_alignment,
)
from speechbrain_merge.methods.transport.diagnostic import alignment_table
from speechbrain_merge.methods.transport.fusion import OptimalTransport
from speechbrain_merge.methods.transport.symmetry import (
    Blocks,
    Piece,
    Space,
    Symmetry,
    symmetry,
)
from speechbrain_merge.methods.transport.symmetry_map import (
    SymmetryMap,
    UnsupportedArchitecture,
    architectures,
    read_map,
    symmetry_map,
)
