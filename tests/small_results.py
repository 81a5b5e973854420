"""What the tests of the benchmarks share: the tables' entries, a result, what a command would do."""

import torch

from rdpnet_timm.bench import run
from rdpnet_timm.bench.tables import DEPLOY, TABLES
from rdpnet_timm.measure.timing import Measurement

ENTRIES = {
    (name, entry.name): entry for name, table in TABLES.items() for c in table.comparisons for entry in c.entries
}


def outputs(model, x):
    """In evaluation."""
    with torch.no_grad():
        return model.eval()(x)


def result_of(samples, complete=True, table="table5"):
    """A result of one eager run of two networks of Table 5, the reference the second; each of ``samples`` six times."""
    samples = [times * 6 for times in samples]
    names = {"MobileNetV2-0.5x": 1, "RDPNet-0.75x": 2}
    facts = {
        f"{name}, {DEPLOY}": dict(
            name=name, form=DEPLOY, size=[3, 224, 224], params=number * 10**6, macs=number * 10**8
        )
        for name, number in names.items()
    }
    measurement = Measurement(dict(zip(facts, samples)), rounds=len(samples[0]), warmup=0, seed=0, load_after=50.0)
    one = dict(comparison="Group A", reference=f"RDPNet-0.75x, {DEPLOY}", backend="eager", threads=1, failures={})
    return {
        "table": table,
        "title": "Title",
        "note": "A note.",
        "complete": complete,
        "quick": False,
        "rounds": 3,
        "command": "rdpnet bench table5",
        "date": "2026-01-02T03:04:05+00:00",
        "machine": {"cpu": "A CPU", "cores": 2, "capability": "AVX2", "gpu": None, "versions": {"torch": "2.0"}},
        "runs": [{**one, "contestants": facts, "measurement": measurement.to_dict()}],
    }


def plan(names, output, backends=("eager", "onnxruntime"), precisions=("float32",)):
    """The tables that the command would measure."""
    return run._plan(names, output, backends, [1], 30, precisions)[0]
