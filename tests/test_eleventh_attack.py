"""What an eleventh attack found, each as the attack did it.

Authors
 * The speechbrain_merge authors 2026
"""

import json



def test_ranks_with_other_audio_are_refused_and_nothing_is_stored(tmp_path):
    found = json.loads(python("ranks.other_data", tmp_path).splitlines()[-1])
    first, second = found["stale"]
    # every rank says the same, before anything is computed
    assert first == second and len(first) == 7
    for name, error in first.items():
        assert "Rank 1 has other data than rank 0" in str(error), (name, error)
        assert "Make the copies of the data" in error
        at = "000" if name in ("features", "map") else "003"
        assert f"utterance 'utterance-60-{at}'" in error
    assert "set 'near', utterance '" in first["search"]
    assert found["left"] == []
    # copies that are equal may lie in folders of their own
    assert found["right"][0] == found["right"][1]
    assert all(type(one) is float for one in found["right"][0].values())
