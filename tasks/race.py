"""race: two models timed in turns on the selection split's texts, to compare what was made at different times."""

from __future__ import annotations

from tasks.contracts.values import Bundle, Scorecard, Splits, StageOutput
from tasks.engine import quiet, store, tracking
from tasks.engine.stage import stage
from tasks.ml import machine

FILE = "race.json"


@stage(salt=lambda **_: machine.identity())  # a timing belongs to the machine that it was taken on
def race(source: Bundle, splits: Splits, config: quiet.TimingConfig, *, rival: Bundle) -> StageOutput:
    """Times a model and its rival, with the machine to themselves, one sentence and batches in every round."""
    from tasks.ml.proof import race as racing
    from tasks.ml.runtime import timing

    paces = racing.run(
        store.path(source.digest),
        store.path(rival.digest),
        data=store.path(splits.digest),
        problem=source.problem,
        batch_size=quiet.BATCH,
        alone=quiet.timing,
        **config.model_dump(mode="json"),
    )
    with store.workspace() as directory:
        timing.write_paces(directory / FILE, paces)
        tracking.current().artifact(directory)
        evidence = store.publish(directory)
    own = paces[0]
    card = Scorecard(latency_p50_ms=own.latency_p50_ms, throughput_per_s=own.throughput_per_s)
    return StageOutput(bundle=source, evidence=evidence, scorecard=card)
