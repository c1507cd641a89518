"""The search for settings of the minimum-norm attack."""

from attacks.trained import digits
from hydraprune.attacks.fmn import FMN
from hydraprune.core.objective import Batch
from hydraprune.core.threat import ThreatModel
from hydraprune.evaluation import evaluate
from hydraprune.evaluation.tuning import tuned

THREAT = ThreatModel(eps=0.1)


def test_tuning_shortens_the_changes_and_repeats_itself():
    net, (x, y) = digits()
    batch, bad = Batch(x[:16], y[:16]), FMN(steps=50, step_size=1e-3)

    def search(trials):
        return tuned(net, batch, THREAT, attack=bad, trials=trials, steps=10, seed=1)

    assert search(1) == bad
    found = search(6)
    assert found == search(6)
    assert (found.steps, found.loss) == (50, "margin")
    assert found.step_size > bad.step_size
    lengths = []
    for attack in (bad, found):
        result = evaluate(net, [Batch(x[16:48], y[16:48])], threat=THREAT, attacks=[attack], seed=0)
        lengths.append(result.distance[attack.name].clamp(max=1).mean())
    assert lengths[1] < 0.9 * lengths[0]
