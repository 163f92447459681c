"""What one rank asks of the others in a step: noted on real ranks and on an imagined one."""

from megascratch.config.fields import flat
from megascratch.config.layout import Layout
from megascratch.config.resolve import ResolvedConfig
from megascratch.data.samples.microbatches import sample_numbers
from megascratch.dry_run.steps import START, ActionNames, PhaseNames
from megascratch.parallel.imagined import imagined_mesh, noted
from megascratch.parallel.mesh import Mesh
from megascratch.parallel.traffic import Communication, TrafficLog
from megascratch.training.start.inputs import own_schedule
from megascratch.training.trainer import Trainer
from tests.support.layout_runs import synthetic_batch
from tests.support.rank_pool import mesh_for


def traffic_on_rank(config: ResolvedConfig) -> list[Communication]:
    """On a rank: the communications of its set-up and its first step."""
    log = TrafficLog()
    mesh = noted(mesh_for(Layout.of(config.parallel)), log)
    return _of_a_step(config, mesh, log)


def imagined_traffic(config: ResolvedConfig, rank: int, gloo: bool = True) -> list[Communication]:
    """Those of a rank whose world does not exist."""
    log = TrafficLog()
    return _of_a_step(config, imagined_mesh(Layout.of(config.parallel), rank, gloo, log), log)


def _of_a_step(config: ResolvedConfig, mesh: Mesh, log: TrafficLog) -> list[Communication]:
    training, dp = config.training, mesh.dp
    size = training.micro_batch_size
    trainer = Trainer(config, mesh, own_schedule(flat(config)))
    log.at(START)
    numbers = [
        sample_numbers(0, m, size, dp.rank, dp.size)
        for m in range(training.global_batch_size // (size * dp.size))
    ]
    batches = [synthetic_batch(config, n) for n in numbers]
    trainer.train_step(
        batches, 1e-2, 1, recorder=ActionNames([log.at]), phases=PhaseNames([log.at])
    )
    trainer.data_parallel.await_weights()
    return log.communications
