"""What the files of a run folder are called."""

# Of a run.
RECIPE, ENVIRONMENT, DATA, METRICS, BOARD = (
    "recipe.yaml",
    "environment.json",
    "data.json",
    "metrics.jsonl",
    "tensorboard",
)
RESULTS, PICTURE = "results.json", "robust_accuracy.png"

# Of a checkpoint, the last of which marks a whole one; of a stage that is under way.
MODEL, MASKS, META = "model.safetensors", "masks.safetensors", "checkpoint.json"
STATE = "state.safetensors"

# Beside a checkpoint: what was measured of it, image by image and in sum.
VERDICTS, EXAMPLES, CURVES = "verdicts.safetensors", "examples.safetensors", "curves.json"
CHECKS, CORRUPTIONS, CLAIM = "checks.json", "corruptions.json", "claim.json"
BESIDE = VERDICTS, EXAMPLES, CURVES, CHECKS, CORRUPTIONS, CLAIM
UNFINISHED = "evaluation.state.safetensors"
EVALUATION, VERIFICATION, CERTIFICATION = LATER = "evaluation.json", "verification.json", "certification.json"
"""What commands write beside a checkpoint, and in a folder there for another threat model than its recipe's."""

# Of a study, whose runs lie in folders of their own; of one of these.
STUDY, SHARED = "study.yaml", "shared"
DONE, FAILED = "cell.json", "failure.json"
