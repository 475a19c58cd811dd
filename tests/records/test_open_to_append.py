"""What is added to is a file of its own, and no link to another.

Authors
 * The speechbrain_merge authors 2026
"""

import os

import pytest

from speechbrain_merge.records.files import open_to_append
from speechbrain_merge.records.log import Log


def test_a_link_is_not_added_to(tmp_path):
    foreign, link = tmp_path / "profile", tmp_path / "log.jsonl"
    for content in ("", "torn"):
        foreign.write_text(content)
        link.symlink_to(foreign)
        for add in (lambda: Log(link).append({}), lambda: open_to_append(link)):
            with pytest.raises(FileExistsError, match="log.jsonl is a link"):
                add()
        assert foreign.read_text() == content
        link.unlink()
    os.close(open_to_append(link))
    assert link.is_file()
