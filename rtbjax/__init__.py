"""Exact posterior inference under diffusion priors, in JAX."""

from rtbjax.certificate import Certificate as Certificate
from rtbjax.certificate import certify as certify
from rtbjax.objective import LossInfo as LossInfo
from rtbjax.objective import loss as loss
from rtbjax.process import Process as Process
from rtbjax.trajectory import log_prob as log_prob
from rtbjax.trajectory import noise as noise
from rtbjax.trajectory import rescore as rescore
from rtbjax.trajectory import rollout as rollout
from rtbjax.trajectory import score as score
from rtbjax.types import Denoiser as Denoiser
from rtbjax.types import LearnedStd as LearnedStd
from rtbjax.types import Policy as Policy
from rtbjax.types import RewardFn as RewardFn
from rtbjax.types import Trajectory as Trajectory
