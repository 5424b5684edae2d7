"""The step of torchgfn, a GFlowNet library for PyTorch with relative trajectory balance, on its own 25-Gaussians.

Its network is of the same kind and width; prior and posterior are untrained, which no time depends on.
"""

from collections.abc import Callable

import torch
from gfn.estimators import PinnedBrownianMotionForward
from gfn.gflownet import RelativeTrajectoryBalanceGFlowNet
from gfn.gym.diffusion_sampling import DiffusionSampling
from gfn.samplers import Sampler
from gfn.utils.modules import DiffusionPISGradNetForward
from ml_collections import ConfigDict


def step(config: ConfigDict) -> Callable[[], None]:
    """On-policy, with log-probabilities kept from sampling, a learned log Z and Adam, as in its tutorial."""
    steps, width = config.process.num_steps, config.prior.width

    def policy():
        net = DiffusionPISGradNetForward(2, hidden_dim=width, s_emb_dim=width, t_emb_dim=width)
        return PinnedBrownianMotionForward(2, net, config.process.diffusion**0.5, steps)

    prior, posterior = policy().requires_grad_(False), policy()
    env = DiffusionSampling("gmm25_posterior9", None, num_discretization_steps=steps)
    flow = RelativeTrajectoryBalanceGFlowNet(posterior, prior, beta=config.objective.beta)
    sampler = Sampler(posterior)
    adam = torch.optim.Adam(posterior.parameters(), lr=config.train.learning_rate)
    adam.add_param_group({"params": flow.logz_parameters(), "lr": config.train.log_z_learning_rate})

    def run():
        paths = sampler.sample_trajectories(env, n=config.train.batch_size, save_logprobs=True)
        adam.zero_grad()
        flow.loss(env, paths, recalculate_all_logprobs=False).backward()
        torch.nn.utils.clip_grad_norm_(posterior.parameters(), config.train.clip_norm)
        adam.step()

    return run
