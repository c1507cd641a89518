"""What the files of a run folder are called, and whether those of a checkpoint are there."""

from pathlib import Path

from hydraprune.core.errors import CheckpointError

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

# A checkpoint in one file, in a folder where others find it.
PACKED_SUFFIX = ".hpk"
PACKED = f"network{PACKED_SUFFIX}"

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


def finished(folder: Path) -> bool:
    """Whether the folder holds a whole checkpoint."""
    return (folder / META).is_file()


def refuse_unfinished(folder: Path) -> None:
    """See that there is a checkpoint.

    Raises:
        CheckpointError: if there is none.
    """
    if folder.is_file():
        raise CheckpointError(
            f"{folder} is a file, and this takes the folder of a checkpoint; make one of it: "
            "`hydraprune import FILE --out FOLDER`"
        )
    if not finished(folder):
        raise CheckpointError(f"{folder} holds no finished checkpoint (no {META}); give a folder such as RUN/finetune")


def refuse_graph(file: Path) -> None:
    """See that a file is not ONNX, which holds what is left of a network, and not the network.

    Raises:
        CheckpointError: if it is.
    """
    if file.suffix == ".onnx":
        raise CheckpointError(
            f"{file} is for runtimes, and no checkpoint can be made of it; give the checkpoint that it was made from, "
            "or another format of it"
        )
