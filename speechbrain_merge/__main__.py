"""``python -m speechbrain_merge`` is the command ``speechbrain-merge``.

Authors
 * The speechbrain_merge authors 2026
"""

import sys

from speechbrain_merge.cli import main

if __name__ == "__main__":
    sys.exit(main())
