"""Files, logs and fingerprints: how records are written and read back.

Files and folders that appear whole or not at all (`files`, `folders`), names
that cannot lead out of their folder (`paths`), logs that survive a kill
(`log`), JSON and YAML that is checked before it is used (`checked`,
`reading`), work that is done once (`once`), and what settings and objects are
known by (`fingerprint`). This room knows nothing of models or merging.

Authors
 * The speechbrain_merge authors 2026
"""
