"""How experts are trained: knows torch and SpeechBrain, nothing of merging."""

from speechbrain_merge.training.sampling import RunSampler
